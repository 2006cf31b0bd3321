"""Tables: reads the rows of a CSV, TSV or JSONL file, however a spreadsheet has written it, and writes CSV."""

import codecs
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from src.runtime.files import atomic

SEPARATORS = {".csv": ",;\t", ".tsv": "\t;,", ".jsonl": ""}  # by suffix: the first that the header has most of

NOT_UTF8 = "is not UTF-8"  # the problem of a row with half a character


class TableRow(NamedTuple):
    """The line that it ends in, from 1; its cells by column, empty ones too; and why it is bad, "" if it is good."""

    line: int
    cells: dict[str, str]
    problem: str


class TableReader:
    """The rows of a table, read in constant memory each time that it is iterated.

    Cells are separated by commas, semicolons or tabs, as the header shows, and by blanks after these. A quoted cell may
    hold line breaks; blank lines are no rows. Problems of a row: it is malformed, has other columns than the header, is
    not in `encoding`, or (JSONL) is no object, lacks one of `needs` or has a value that is neither text nor number.

    `needs`: columns that must be there. Raises ValueError naming file and line for a header that lacks one or has one
    twice, for UTF-16, and for a file that is missing or no table.
    """

    def __init__(self, path: Path, needs: Iterable[str] = (), encoding: str = "utf-8") -> None:
        self.path, self.needs, self.encoding = path, tuple(needs), encoding
        if path.suffix.lower() not in SEPARATORS:
            raise ValueError(f"{path}: a table is {', '.join(SEPARATORS)}, not '{path.suffix}'.")
        if not path.is_file():
            raise ValueError(f"{path}: file not found.")
        try:
            utf8 = codecs.lookup(encoding).name == "utf-8"
        except LookupError:
            raise ValueError(f"{path}: unknown encoding {encoding!r}.") from None
        self._form = "utf-8-sig" if utf8 else encoding
        with path.open("rb") as file:
            start = file.read(4)
        if utf8 and (start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start):
            raise ValueError(f"{path}, line 1: not UTF-8; it looks like UTF-16.")
        self.columns: list[str] = []
        self._json = path.suffix.lower() == ".jsonl"
        if not self._json:
            self._read_header()

    def _open(self) -> IO[str]:
        # Bytes that are not in the encoding survive as surrogates, to be told with their row.
        return self.path.open(encoding=self._form, errors="surrogateescape", newline="")

    def _read_header(self) -> None:
        with self._open() as file:
            line, header = next(((n, text) for n, text in enumerate(file, 1) if text.strip()), (1, ""))
        separator = max(SEPARATORS[self.path.suffix.lower()], key=header.count)
        self._form_of_cells = {"delimiter": separator, "skipinitialspace": f"{separator} " in header, "strict": True}
        with self._open() as file:
            try:
                self.columns = next((cells for cells in csv.reader(file, **self._form_of_cells) if cells), [])
            except csv.Error as error:
                raise ValueError(f"{self.path}, line {line}: no header: {error}.") from None
        where, has = f"{self.path}, line {line}", ", ".join(self.columns) or "no header"
        if missing := [name for name in self.needs if name not in self.columns]:
            raise ValueError(f"{where}: the column {', '.join(missing)} is missing; the table has {has}.")
        if twice := next((name for name in self.columns if self.columns.count(name) > 1), None):
            raise ValueError(f"{where}: has the column {twice!r} twice.")

    def __iter__(self) -> Iterator[TableRow]:
        with self._open() as file:
            for line, cells, problem in self._objects(file) if self._json else self._cells(file):
                try:
                    "".join(cells.values()).encode()
                except UnicodeEncodeError:
                    problem = NOT_UTF8 if self._form == "utf-8-sig" else f"is not {self.encoding.upper()}"
                yield TableRow(line, cells, problem)

    def _cells(self, file: IO[str]) -> Iterator[tuple[int, dict[str, str], str]]:
        reader, header = csv.reader(file, **self._form_of_cells), True
        while True:
            begin = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                there = f", from line {begin} on" if reader.line_num > begin else ""
                yield reader.line_num, {}, f"is malformed{there}: {error}"
                continue
            if cells and not header:
                counts = len(cells), len(self.columns)
                problem = f"has {counts[0]} cells for {counts[1]} columns" if counts[0] != counts[1] else ""
                yield reader.line_num, dict(zip(self.columns, cells, strict=False)), problem
            header = header and not cells

    def _objects(self, file: IO[str]) -> Iterator[tuple[int, dict[str, str], str]]:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                row = error
            if not isinstance(row, dict):
                yield line, {}, f"is not a JSON object ({row})"
                continue
            problem = next((f"{name}: {kind}, not a text" for name, value in row.items() if (kind := _kind(value))), "")
            if missing := [name for name in self.needs if name not in row]:
                problem = f"has no {' and no '.join(missing)}, only {', '.join(row) or 'nothing'}"
            yield line, {name: "" if value is None else str(value) for name, value in row.items()}, problem


def write_table(file: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """Writes a CSV file, atomically: `columns`, then all others of the rows in the order in which they occur."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with atomic(file) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        writer = csv.DictWriter(handle, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _kind(value: Any) -> str:
    """What a JSON value is, if it is neither text nor number nor null."""
    if isinstance(value, bool | list | dict):
        return {bool: "true or false", list: "a list", dict: "an object"}[type(value)]
    return f"{value}" if isinstance(value, float) and not math.isfinite(value) else ""
