"""
A Hub on this machine: the endpoints for creating a model repository or a static Space, uploading to it and loading
from it.

It answers as the Hub does: 401 to an unknown token, 403 to a foreign namespace, 409 if a repository exists, 412 if a
commit's parent is not the latest commit. Tests can request other failures. Each test has a Hub and a port of its own.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import ModelCard, SpaceCard, SpaceCardData

TOKEN, NAMESPACE = "hf_loopback", "me"


@dataclass
class LoopbackHub:
    """
    Attributes:
        endpoint (`str`): The value for `HF_ENDPOINT`.
        repositories (`dict[str, dict[str, dict[str, bytes]]]`): Id, of a Space with "spaces/" before it, to commits;
            sha to files, the latest last.
        failures (`list[tuple[str, int | str]]`): Patterns and kinds. A request whose "METHOD /path" matches a pattern
            removes that entry and fails: with a status, with the connection "cut" during the request, or with the
            answer "lost" after the request was carried out.
        requests (`list[str]`): "METHOD /path" of every request.
        tokens (`list[str | None]`): The header "Authorization" of every request.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    failures: list[tuple[str, int | str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def head(self, repo_id: str) -> str:
        """The latest commit."""
        return list(self.repositories[repo_id])[-1]

    def files(self, repo_id: str) -> dict[str, bytes]:
        """File name to content, in the latest commit."""
        return self.repositories[repo_id][self.head(repo_id)]

    def commit(self, repo_id: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(repo_id, {})
        sha = hashlib.sha1(f"{repo_id} {len(commits)}".encode()).hexdigest()
        commits[sha] = files
        return sha


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def log_message(self, *args):
        pass

    def answer(self, content: bytes | dict, status: int = 200, **headers: str):
        if self.failure == "lost":
            return self.cut()
        body = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def has_failed(self) -> bool:
        """Read the request, and fail if a test requested it. A "lost" answer fails later, in `answer`."""
        request, length = f"{self.command} {self.path}", int(self.headers.get("Content-Length", 0))
        self.hub.requests.append(request)
        self.hub.tokens.append(self.headers.get("Authorization"))
        failing = [failure for failure in self.hub.failures if re.search(failure[0], request)]
        self.failure = failing[0][1] if failing else None
        if failing:
            self.hub.failures.remove(failing[0])
        self.body = self.rfile.read(length // 2 if self.failure == "cut" else length)
        if self.failure == "cut":
            self.cut()
        elif isinstance(self.failure, int):
            self.answer({"error": "requested by the test"}, self.failure)
        return self.failure is not None and self.failure != "lost"

    def do_POST(self):
        if self.has_failed():
            return None
        if self.path == "/api/validate-yaml":
            return self.validate(**json.loads(self.body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            return self.create(json.loads(self.body))
        match = re.fullmatch(r"/api/(?:models/|(spaces/))([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        repo_id = (match[1] or "") + match[2] if match else None
        if repo_id not in self.hub.repositories:
            return self.answer({"error": self.path}, 404, X_Error_Code="RepoNotFound")
        if not match[2].startswith(f"{NAMESPACE}/"):
            return self.answer({"error": "Forbidden"}, 403)
        if match[3] == "preupload":
            return self.preupload(repo_id, json.loads(self.body)["files"])
        return self.commit(repo_id, [json.loads(line) for line in self.body.splitlines()])

    def validate(self, content: str, repoType: str):
        try:
            if repoType == "space":
                check_space_card(SpaceCard(content).data)
            else:
                ModelCard(content)
        except (ValueError, TypeError) as error:
            return self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self.answer({"errors": [], "warnings": []})

    def create(self, request: dict):
        namespace = request.get("organization") or NAMESPACE
        name = f"{namespace}/{request['name']}"
        is_space = request.get("type") == "space"
        if is_space and request.get("sdk") != "static":
            return self.answer({"error": "A Space needs an SDK."}, 400)
        if namespace != NAMESPACE:
            return self.answer({"error": f'No right to create a model under the namespace "{namespace}".'}, 403)
        path = f"spaces/{name}" if is_space else name
        status = 409 if path in self.hub.repositories else 200
        if status == 200:
            self.hub.commit(path, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer({"url": f"{self.hub.endpoint}/{path}", "name": name, "id": name}, status)

    def preupload(self, repo_id: str, files: list[dict]):
        current = self.hub.files(repo_id)
        modes = [
            {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": git_hash(current.get(path))}
            for path in (file["path"] for file in files)
        ]
        return self.answer({"files": modes})

    def commit(self, repo_id: str, lines: list[dict]):
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, self.hub.head(repo_id)):
            return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        deleted = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
        kept = {path: content for path, content in self.hub.files(repo_id).items() if path not in deleted}
        sha = self.hub.commit(repo_id, kept | added)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        return self.answer({"success": True, "commitOid": sha, "commitUrl": url})

    def do_GET(self):
        if self.has_failed():
            return None
        path, file = self.path.partition("?")[0], None
        if match := re.fullmatch(r"/api/(?:models/|(spaces/))([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repo_id, revision = (match[1] or "") + match[2], match[3]
        elif match := re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo_id, revision, file = match.groups()
        elif match := re.fullmatch(r"/api/(?:models/|(spaces/))([^/]+/[^/]+)/tree/([^/]+)", path):
            repo_id, revision = (match[1] or "") + match[2], match[3]
        else:
            return self.answer({"error": self.path}, 404)
        if repo_id not in self.hub.repositories:
            return self.answer({"error": "gone"}, 404, X_Error_Code="RepoNotFound")
        sha = self.hub.head(repo_id) if revision in (None, "main") else revision
        files = self.hub.repositories[repo_id].get(sha)
        if files is None:
            return self.answer({"error": "gone"}, 404, X_Error_Code="RevisionNotFound")
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": git_hash(c)} for n, c in files.items()]
            return self.answer(json.dumps(tree).encode())
        if file is None:
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": repo_id, "sha": sha, "siblings": siblings, "tags": [], "private": False})
        if file not in files:
            return self.answer({"error": "gone"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        return self.answer(files[file], ETag=f'"{git_hash(files[file])}"', X_Repo_Commit=sha)

    do_HEAD = do_GET


def check_space_card(data: SpaceCardData) -> None:
    """Raise `ValueError` where the Hub rejects the front matter of a Space's card."""
    colors = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    if data.sdk not in ("gradio", "docker", "static"):
        raise ValueError(f'"sdk" must be one of gradio, docker, static, got {data.sdk}')
    if not data.emoji or data.emoji.isascii() or {data.get("colorFrom"), data.get("colorTo")} - {*colors}:
        raise ValueError('"emoji" must be an emoji, "colorFrom" and "colorTo" colors')
    if len(data.get("short_description") or "") > 60:
        raise ValueError('"short_description" has over 60 characters')


def git_hash(content: bytes | None) -> str | None:
    """Git's hash of a file. huggingface_hub compares it to find changed files."""
    return None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """A Hub that serves on a free port."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
