"""Digests: of the files of a directory, so that what has changed or gone since is found out."""

import hashlib
import json
from pathlib import Path

FILE = "digests.json"
# What orbax writes when all else is there: the time, in the one, and nothing, in the other.
METADATA, TIME, COMMIT = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs", "commit_success.txt"


def write(directory: Path) -> None:
    """Writes the digests of all files that a directory holds, beside them."""
    found = {name: _digest(path) for name, path in _files(directory).items()}
    text = json.dumps(found, indent=1)
    (directory / FILE).write_text(json.dumps({"files": found, "all": _of(text.encode())}, indent=1))


def damage(directory: Path) -> str | None:
    """What is wrong with a directory, in a few words; None if it is as it was written."""
    try:
        record = json.loads((directory / FILE).read_bytes())
        expected = record["files"]
        if record["all"] != _of(json.dumps(expected, indent=1).encode()):
            return f"{FILE} has changed"
    except FileNotFoundError:
        return f"it has no {FILE}: it is of another version, or part of it is gone"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} cannot be read ({error})"
    there = _files(directory)
    for name, digest in expected.items():
        if name not in there:
            return f"{name} is missing"
        try:
            if _digest(there[name]) != digest:
                return f"{name} has changed"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    return None


def _files(directory: Path) -> dict[str, Path]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    named = {str(path.relative_to(directory)): path for path in paths}
    return {name: path for name, path in named.items() if name not in (FILE, COMMIT)}


def _digest(path: Path) -> str:
    if path.name == METADATA:
        content = json.loads(path.read_bytes())
        return _of(json.dumps({**content, TIME: None}, sort_keys=True).encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
