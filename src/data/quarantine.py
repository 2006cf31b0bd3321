"""What becomes of bad rows: one clear error at the first, or a file that lists them all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.runtime.files import atomic


class Quarantine:
    """Called with (file, line, key, reason): raises a ValueError, or, with a `path`, lists the row for `write`.

    path: JSON lines with `file`, `line` (0: the file as a whole), `key` and `reason`; None: bad rows are errors.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[bytes] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, file: Path, line: int, key: str, reason: str) -> None:
        if self.path is None:
            raise ValueError(f"{file}, line {line}, '{key}': {reason}.")
        self.rows.append(_entry(file, line, key, reason))

    def write(self) -> None:
        """Replaces the file, in one step, by the rows listed."""
        if self.path is not None:
            with self._told(), atomic(self.path, shared=True) as part:
                part.write_bytes(b"".join(self.rows))

    def append(self, file: Path, line: int, key: str, reason: str) -> None:
        """Adds a row to the file, unless it is there, with one appending write: lines of several workers never mix."""
        if self.path is None:
            raise ValueError(f"{file}, line {line}, '{key}': {reason}.")
        entry = _entry(file, line, key, reason)
        with self._told():
            if self.path.exists() and entry in self.path.read_bytes():
                return
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, entry)
            finally:
                os.close(handle)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"the list of bad rows {self.path} cannot be written ({error.strerror}); data.quarantine=FILE or "
                "data.cache=FOLDER names another place."
            ) from None


def _entry(file: Path, line: int, key: str, reason: str) -> bytes:
    return json.dumps({"file": str(file), "line": line, "key": key, "reason": reason}).encode() + b"\n"
