"""Whether a training checkpoint is whole.

A checkpoint is a folder that is written under a temporary name, its manifest last, brought to the disk and renamed."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"  # size and SHA-256 hash of every other file


def write_manifest(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint that is complete but for it."""
    paths = sorted(path for path in checkpoint.iterdir() if path.name != MANIFEST)
    files = {path.name: _describe(path.read_bytes()) for path in paths}
    (checkpoint / MANIFEST).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def find_damage(checkpoint: Path) -> str | None:
    """What is missing in a checkpoint, or not as it was written, in words; `None` if it is whole."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not (checkpoint / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (file["size"], file["sha256"]) for name, file in files.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"
    for name, (size, digest) in expected.items():
        try:
            found = _describe((checkpoint / name).read_bytes())
        except FileNotFoundError:
            return f"{name} is missing, which {MANIFEST} names"
        except (OSError, ValueError) as error:
            return f"{name} is unreadable ({error})"
        if found["size"] != size:
            return f"{name} is damaged: it has {found['size']:,} bytes, {MANIFEST} says {size:,}"
        if found["sha256"] != digest:
            return f"{name} is damaged: its content is not what {MANIFEST} says"
    return None if expected else f"{MANIFEST} is damaged: it names no files"


def _describe(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
