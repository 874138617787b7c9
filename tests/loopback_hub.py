"""A Hub on this machine: the endpoints that creating, uploading to and loading from a model repository use."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def loopback_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Serve on a free port. Yields the endpoint and the repositories: id to file name to content."""
    repositories: dict[str, dict[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, content: bytes | dict, status: int = 200, **headers: str):
            body = json.dumps(content).encode() if isinstance(content, dict) else content
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                request = json.loads(body)
                name = "/".join(filter(None, (request.get("organization") or "me", request["name"])))
                status = 409 if name in repositories else 200
                repositories.setdefault(name, {})
                self.answer({"url": f"{endpoint}/{name}", "name": name, "id": name}, status)
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                self.answer({"files": files})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        repositories[match[1]][line["value"]["path"]] = content
                self.answer({"success": True, "commitOid": "c" * 40, "commitUrl": f"{endpoint}/{match[1]}/commit/c"})
            else:
                self.answer({"error": self.path}, 404)

        def do_GET(self):
            if match := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/[^?]+)?(\?.*)?", self.path):
                if match[1] not in repositories:
                    return self.answer({"error": "gone"}, 404, X_Error_Code="RepoNotFound")
                siblings = [{"rfilename": name} for name in repositories[match[1]]]
                return self.answer(
                    {"id": match[1], "sha": "c" * 40, "siblings": siblings, "tags": [], "private": False}
                )
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
                content = repositories.get(match[1], {}).get(match[2])
                if content is not None:
                    tag = hashlib.sha256(content).hexdigest()
                    return self.answer(content, ETag=f'"{tag}"', X_Repo_Commit="c" * 40)
                return self.answer({"error": "gone"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit="c" * 40)
            return self.answer({"error": self.path}, 404)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield endpoint, repositories
    finally:
        server.shutdown()
        server.server_close()
