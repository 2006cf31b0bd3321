"""What happens to bad rows: an error at the first one, or a file that lists them all."""

import json
from pathlib import Path

from src.runtime.files import atomic


class Quarantine:
    """Called with (file, line, key, reason): raises a ValueError, or, with a `path`, lists the row there.

    path: JSON lines with `file`, `line` (0: the file as a whole), `key` and `reason`; None: bad rows are errors. Rows
    are kept until `write` replaces the file. From then on they are appended to it, each once per process.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.written = path, False
        self.rows: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, file: Path, line: int, key: str, reason: str) -> None:
        if self.path is None:
            raise ValueError(f"{file}, line {line}, '{key}': {reason}." if line else f"{file}: {reason}.")
        row = json.dumps({"file": str(file), "line": line, "key": key, "reason": reason}).encode() + b"\n"
        if self.written and row not in self.rows:
            with self.path.open("ab", buffering=0) as handle:  # in one write: lines of several workers never mix
                handle.write(row)
        self.rows[row] = None

    def write(self) -> None:
        """Replaces the file, in one step, by the rows listed. Raises ValueError if it cannot, or is no such list."""
        if self.path is not None:
            try:
                if self.path.exists() and not _is_list(self.path):
                    raise ValueError(f"{self.path} is no list of bad rows; data.quarantine=FILE names another place.")
                with atomic(self.path, shared=True) as part:
                    part.write_bytes(b"".join(self.rows))
            except OSError as error:
                raise ValueError(
                    f"the list of bad rows {self.path} cannot be written ({error.strerror}); data.quarantine=FILE or "
                    "data.cache=FOLDER names another place."
                ) from None
            self.written = True


def _is_list(file: Path) -> bool:
    """Whether a file is empty or begins as `Quarantine` writes it."""
    with file.open("rb") as handle:
        first = handle.readline()
    try:
        return not first or json.loads(first).keys() == {"file", "line", "key", "reason"}
    except (ValueError, AttributeError):
        return False
