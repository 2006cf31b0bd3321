"""Writing files: atomically, and by one process at a time."""

import fcntl
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TABLES = (".csv", ".jsonl")  # suffixes of result tables; any other output is a folder


@contextmanager
def atomic(file: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path that replaces `file` if the block ends without an error.

    `shared`: several processes may write this file at the same time.
    """
    part = file.with_name(f"{file.name}.{f'{os.getpid()}.' if shared else ''}part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.replace(part, file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:  # for example a full disk
            raise OSError(error.errno, error.strerror, str(file)) from None
        raise


def write_json(file: Path, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    with atomic(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def json_numbers(metrics: Mapping[str, float], where: str = "") -> dict[str, float | None]:
    """The metrics for JSON, which has no NaN or infinity: these become null, with a warning that names them."""
    if odd := [f"{name} is {float(value)}" for name, value in metrics.items() if not math.isfinite(value)]:
        warnings.warn(f"{where}{', '.join(odd)}; stored as null.", stacklevel=2)
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def check_names(folder: Path, names: Mapping[str, str]) -> None:
    """Raises ValueError unless each key has its own file within `folder`.

    names: file name by key, relative to `folder`. Keys come from tables, archives and file names: they may be absolute
    paths, contain `..` or follow a link to another folder.
    """
    root, known, keys = folder.resolve(), set(), {}
    for key, name in names.items():
        parent = os.path.dirname(name)
        if parent not in known:
            if ".." in parent.split("/") or not (folder / parent).resolve().is_relative_to(root):
                raise ValueError(f"the key {key!r} points outside {folder}; use a relative path.")
            known.add(parent)
        if (other := keys.setdefault(os.path.normpath(name), key)) != key:
            raise ValueError(f"the keys {other!r} and {key!r} map to the same file {folder / name}.")


def new_folder(path: str | Path) -> Path:
    """Creates the folder. Raises ValueError if it is not empty."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder.")
    return folder


def check_outside(word: str, path: str | Path, folder: str | Path) -> None:
    """Raises ValueError if `path`, the value of `word`, is in a folder whose files are read: it would be read, too."""
    if Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{word}={path} is inside folder={folder}, which is read; choose another {word}.")


def new_file(path: str | Path) -> Path:
    """The path of a file to write, to be checked before the work. Raises ValueError if something is there."""
    if os.path.lexists(path):
        raise ValueError(f"{path} exists; choose another out, or remove it.")
    return Path(path)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks `out`, a folder or a table, for one process. Raises ValueError if another process has locked it.

    The lock is released when the process ends. The file is `<out>.lock` for a table and `.lock` in a folder, which also
    works if the parent folder is read-only.
    """
    table = out.suffix in TABLES
    lock, new = Path(f"{out}.lock") if table else out / ".lock", not out.exists()
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Not flock: workers that survive a killed process for a moment would hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock.exists() or not os.path.samestat(os.fstat(handle), lock.stat()):
            raise BlockingIOError  # the process that held this lock has just ended
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
