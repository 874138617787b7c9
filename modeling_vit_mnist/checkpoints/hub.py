"""Push a checkpoint folder, or a Space with checkpoints, to the Hub."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: any failed connection

from ..cli.errors import UsageError
from ..cli.inputs import read_text
from ..data.sources import SAMPLE
from .card import fill_eval_results, read_measurements, read_run
from .folder import CHECKPOINT_FILES, MEASUREMENTS, OWN_FILES, load_checkpoint
from .space import TABLE, space_files

logger = logging.getLogger(__name__)

# Seconds before a failed push is repeated. huggingface_hub repeats single requests on its own, with longer waits.
RETRY_WAITS = (2, 8)
MEANING = {"model": "checkpoint", "space": "Space"}
NEW_SPACE = {".gitattributes", "README.md", "index.html", "style.css"}  # what the Hub writes to a new static Space


def push(
    folder: str | os.PathLike, repo_id: str, token: str | None = None, private: bool | None = None,
    allow_sample: bool = False,
) -> str:  # fmt: skip
    """Upload a complete checkpoint folder in one commit. Creates the repository, `name` or `namespace/name`, if need
    be. Records and results in the repository that this folder lacks are deleted there: they describe other weights.
    Pushing an unchanged folder commits nothing. Returns the address of the repository.

    `token` defaults to that of `hf auth login` or `HF_TOKEN`. `private` applies to new repositories, by default as the
    namespace is set. `allow_sample` allows a model trained on the bundled sample.

    Raises:
        UsageError: no complete checkpoint that can be loaded, results of other weights, a model of the bundled sample,
            an impossible name, a card that the Hub rejects, or a token that is missing or has no right to write there.
        ConnectionError: the Hub cannot be reached, or failed each time.
        OSError: a file of the folder cannot be read.
    """
    folder = Path(folder)
    return _upload(folder, repo_id, "model", _files_to_push(folder, allow_sample), token, private)


def push_space(folder: str | os.PathLike, repo_id: str) -> str:
    """Upload a folder of [`export_space`] as a static Space, as [`push`] uploads a checkpoint. What an earlier push
    wrote and the folder lacks is deleted there. Raises what [`push`] raises, and [`UsageError`] for a Space that holds
    something else."""
    folder = Path(folder)
    files = [name for name in space_files(read_text(folder / TABLE)) if (folder / name).is_file()]
    return _upload(folder, repo_id, "space", sorted(files))


def _written_before(api: huggingface_hub.HfApi, repo_id: str, info: Any) -> list[str]:
    """The files of a Space, whose `repo_info` is given, that a push wrote. Raises [`UsageError`] if it holds something
    else."""
    names = {file.rfilename for file in info.siblings or []}
    if TABLE in names:
        table = api.hf_hub_download(repo_id, TABLE, repo_type="space", revision=info.sha)
        return space_files(read_text(Path(table)))
    if others := sorted(names - NEW_SPACE):
        raise UsageError(f"it holds another Space, with {others[0]}. Pass another --push_to_hub")
    return []


def _upload(
    folder: Path, repo_id: str, kind: str, files: list[str], token: str | None = None, private: bool | None = None
) -> str:
    """Upload files to a repository of a kind, "model" or "space", in one commit that deletes others of ours. Repeats
    it after temporary failures. Returns the address of the repository."""
    api = huggingface_hub.HfApi(token=token)
    settings = {"space_sdk": "static"} if kind == "space" else {}
    for wait in (*RETRY_WAITS, None):
        try:
            repo = api.create_repo(repo_id, private=private, repo_type=kind, exist_ok=True, **settings)
            info = api.repo_info(repo.repo_id, repo_type=kind)
            owned = OWN_FILES if kind == "model" else _written_before(api, repo.repo_id, info)
            api.upload_folder(
                folder_path=folder, repo_id=repo.repo_id, repo_type=kind, allow_patterns=files,
                delete_patterns=list(owned), commit_message=f"Upload vit-mnist {MEANING[kind]}",
                # The Hub rejects (412) a repeated commit whose first answer was lost, since its parent has changed.
                parent_commit=info.sha,
            )  # fmt: skip
            return str(repo)
        except (HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:  # RuntimeError: of hf_xet
            if wait is None or not _is_temporary(error):
                raise _explain(error, folder, repo_id, kind) from error
            logger.warning("Pushing to %s failed, trying again in %d s: %s", repo_id, wait, _reason(error))
            time.sleep(wait)
        except ValueError as error:
            raise UsageError(f"Cannot push {folder} to {repo_id!r}: {error}") from error
    raise AssertionError("the last attempt returns or raises")


def _files_to_push(folder: Path, allow_sample: bool) -> list[str]:
    """Those of [`OWN_FILES`] in a folder that describe its weights. Raises [`UsageError`] if it cannot be pushed."""
    for name in CHECKPOINT_FILES:
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            raise UsageError(f"{folder} is not a complete checkpoint: {name} is missing or empty.")
    load_checkpoint(folder)
    files = {path.relative_to(folder).as_posix() for pattern in OWN_FILES for path in folder.glob(pattern)}
    described = set()
    if (folder / "run.json").is_file():  # an imported checkpoint has none
        run, results = read_run(folder)
        if run["data"]["source"] == SAMPLE.name and not allow_sample:
            raise UsageError(
                f"Refusing to push {folder}: trained on the bundled 5,000-image sample. Train on all of MNIST, or "
                "pass --push_sample_model (allow_sample=True) to push anyway."
            )
        described = {*fill_eval_results(results), *(f"{name}.json" for name in read_measurements(folder, run))}
    doubtful = {name for name in files if name.startswith(".eval_results/") or Path(name).stem in MEASUREMENTS}
    if stale := sorted(doubtful - described):
        logger.warning("Not pushing %s: not a result of this run.", ", ".join(stale))
    return sorted(files - set(stale))


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_temporary(error: Exception) -> bool:
    """Whether a failed push may succeed soon: the connection or the Hub failed, or the repository has changed."""
    status = _status(error)
    if status is None:  # a broken connection, or an error page instead of JSON
        return isinstance(error, (HTTPError, json.JSONDecodeError))
    return status in (408, 412, 429) or status >= 500


def _explain(error: Exception, folder: Path, repo_id: str, kind: str) -> Exception:
    """The error for the user: a [`UsageError`] if the user can correct it, an `OSError` for a file of the folder."""
    is_connection = isinstance(error, (HTTPError, ConnectionError, TimeoutError))
    if isinstance(error, OSError) and error.errno is not None and not is_connection:
        return OSError(error.errno, f"Cannot read the folder to push to {repo_id}: {error.strerror}", error.filename)
    safe = f"The {MEANING[kind]} in {folder} is complete. To retry, run the same command."
    token, repository = {
        "model": ("pass --hub_token", "--hub_model_id"), "space": ("set HF_TOKEN", "--push_to_hub"),
    }[kind]  # fmt: skip
    advice = {
        401: f"needs a valid token (401): run `hf auth login` or {token}",
        403: f"is forbidden (403): pass a repository of yours as {repository}, or a token that may write there",
    }.get(_status(error) or 0)
    raised, what = (UsageError, advice) if advice else (ConnectionError, f"failed: {_reason(error)}")
    return raised(f"Pushing to {repo_id} {what}. {safe}")


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {_status(error)}: {error.server_message or error}".rstrip(".")
    return str(error).rstrip(".")
