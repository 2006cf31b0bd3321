"""Files as a run writes them: each whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Any) -> None:
    """Writes `content` as indented JSON, in one step."""
    with atomic(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
