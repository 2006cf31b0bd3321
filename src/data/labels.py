"""The tables beside the pictures: label.txt, a table of titles, lists of keys; a million rows in seconds."""

from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.data.archive import Names
from src.data.batch import CLASSES
from src.data.tables import TableReader

UNSUITABLE = "unsuitable"  # the product photo itself is cut off or damaged; in the release, not in the article
NAMES = (*CLASSES, UNSUITABLE)
LABELS = {1: "available", 2: UNSUITABLE, **dict(enumerate(CLASSES[1:], 3))}  # release

Fault = Callable[[Path, int, str, str], None]  # file, line, key, reason: raises, or lists it and returns


def read_labels(
    path: Path, label_map: Mapping[Any, str], separator: str | None, header: bool, fault: Fault
) -> tuple[Names, np.ndarray, np.ndarray]:
    """The keys (picture names, first column), their lines from 1 (int32) and labels (last column) as int8 into NAMES.

    A label is a string of `label_map`, or a class name however written ("Space Mismatch"). separator None: tab if
    the first line has one, else comma, else white space; only a name without the separator can be read.
    """
    classes = {str(text).strip().encode(): _class(name) for text, name in label_map.items()}
    names = {name.encode(): number for number, name in enumerate(NAMES)}
    lines, labels = array("i"), array("b")

    def keys() -> Iterator[bytes]:
        cut, columns = separator.encode() if separator else None, 0
        if not path.is_file():
            raise ValueError(f"{path}: there is no such label file.")
        with open(path, "rb") as file:
            for line, text in enumerate(file, 1):
                if line == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                text = text.strip(b"\r\n")
                if not text.strip() or (header and line == 1):
                    continue
                if not columns:
                    cut = cut or (b"\t" if b"\t" in text else b"," if b"," in text else None)
                cells = text.split(cut)
                columns = columns or max(2, len(cells))
                if len(cells) != columns:
                    shown = text.decode("utf-8", "replace")
                    fault(path, line, shown, f"{len(cells)} columns, not {columns}, between {cut or 'blanks'!r}")
                    continue
                label = cells[-1].strip()
                number = classes.get(label)
                if number is None:
                    number = names.get(b"_".join(label.lower().replace(b"_", b" ").replace(b"-", b" ").split()))
                key = cells[0].strip().replace(b"\\", b"/")
                if number is None or not key:
                    known = ", ".join([*(str(text) for text in label_map), *NAMES])
                    shown = label.decode("utf-8", "replace")
                    reason = f"unknown label '{shown}', the labels are {known}" if key else "no picture name"
                    fault(path, line, key.decode("utf-8", "replace"), reason)
                    continue
                lines.append(line)
                labels.append(number)
                yield key

    packed = Names(keys())
    return packed, np.array(lines, np.int32), np.array(labels, np.int8)


def _class(name: str) -> int:
    if name not in NAMES:
        raise ValueError(f"label_map names the class '{name}'; the classes are {', '.join(NAMES)}.")
    return NAMES.index(name)


def read_texts(path: Path, fault: Fault, encoding: str = "utf-8") -> tuple[Names, dict[str, Names]]:
    """The keys of a table with `key`, `title` and maybe `prompt`, and these texts by field.

    A row with an empty key or text is left out, so that its picture counts as one without a title. A row that is
    torn, has too many or too few cells or is not in `encoding` is a fault.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such table of titles; data.titles=null says that there is none.")
    texts: dict[str, list[bytes]] = {}
    keys: list[bytes] = []
    for line, cells, problem in TableReader(path, ("key", "title"), encoding):
        fields = [field for field in ("title", "prompt") if field in cells]
        texts = texts or {field: [] for field in fields if not problem}
        if not problem and fields != list(texts):
            problem = f"has {', '.join(fields)}, but the first row {', '.join(texts)}"
        if problem:
            way = "; data.titles_encoding= names another encoding" if problem.startswith("is not ") else ""
            fault(path, line, cells.get("key", "").encode(errors="replace").decode(), f"{problem}{way}")
        elif cells["key"] and all(cells[field] for field in fields):
            keys.append(cells["key"].encode())
            for field in fields:
                texts[field].append(cells[field].encode())
    return Names(keys), {field: Names(values) for field, values in texts.items()}
