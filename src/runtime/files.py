"""Files as a run writes them: each whole or not at all, by one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TABLES = (".csv", ".jsonl")  # of results; any other output is a folder


@contextmanager
def atomic(file: Path, shared: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, which replaces `file` once the block ends without an error.

    A kill leaves the old file, or none. `shared`: several processes may write this file at the same time.
    """
    part = file.with_name(f"{file.name}.{f'{os.getpid()}.' if shared else ''}part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.replace(part, file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:  # a full disk, say
            raise OSError(error.errno, error.strerror, str(file)) from None
        raise


def write_json(file: Path, content: Any) -> None:
    """Writes `content` as indented JSON, in one step."""
    with atomic(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_names(folder: Path, names: Mapping[str, str]) -> None:
    """Raises ValueError unless each key has a file of its own within `folder`.

    names: for each key the file's name, relative to `folder`. Keys come from tables, archives and file names: they may
    be absolute paths, contain `..` or lead through a link to another folder.
    """
    root, known, keys = folder.resolve(), set(), {}
    for key, name in names.items():
        parent = os.path.dirname(name)
        if parent not in known:
            if ".." in parent.split("/") or not (folder / parent).resolve().is_relative_to(root):
                raise ValueError(f"the key {key!r} leads out of the folder {folder}; a path relative to it is needed.")
            known.add(parent)
        if (other := keys.setdefault(os.path.normpath(name), key)) != key:
            raise ValueError(f"the keys {other!r} and {key!r} have one file, {folder / name}.")


def new_folder(path: str | Path) -> Path:
    """The folder, made if it is not there. Raises ValueError if it has any content."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder.")
    return folder


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one process at a time is in this block for one `out`, a folder or a table. Raises ValueError in the second.

    The lock goes with the process, however it ends. It is `<out>.lock` for a table, `.lock` in a folder, where it can
    also be made if the folder above is read-only.
    """
    table = out.suffix in TABLES
    lock, new = Path(f"{out}.lock") if table else out / ".lock", not out.exists()
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Not flock: workers of a killed process that live on for a moment would hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock.exists() or not os.path.samestat(os.fstat(handle), lock.stat()):
            raise BlockingIOError  # it was the lock of a process that ended just now
    except (BlockingIOError, PermissionError):
        os.close(handle)
        raise ValueError(f"{out} is in use by another process; wait until it ends, or choose another out.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
        if new and not table:
            with suppress(OSError):
                out.rmdir()  # nothing was written
