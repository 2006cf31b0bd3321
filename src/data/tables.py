"""The rows of an open CSV, TSV or JSONL file: the line each ends in, its cells, and why it is no whole row ("": it is).

The files are opened with `newline=""`, so that a quoted cell may hold a line break. Blank lines are no rows.
"""

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

SEPARATORS = {".csv": ",", ".tsv": "\t"}  # of the cells, by the file's suffix
Read = tuple[int, dict[str, Any], str]  # line from 1, cells by column, reason


def csv_rows(file: IO[str], separator: str) -> Iterator[Read]:
    """The rows under the header, which is the first line that is not blank."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    header: list[str] = []
    twice = ""
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            there = f", from line {begin} on" if reader.line_num > begin else ""
            yield reader.line_num, {}, f"is no row of a table{there}: {error}"
            continue
        if header and cells:
            reason = f"has {len(cells)} cells for {len(header)} columns" if len(cells) != len(header) else twice
            yield reader.line_num, dict(zip(header, cells, strict=False)), reason
        if not header and cells:
            header = cells
            twice = next((f"has the column {name!r} twice" for name in header if header.count(name) > 1), "")


def csv_header(file: IO[str], separator: str) -> list[str]:
    """The first line that is not blank, cut into cells; [] if there is none. ValueError if it is torn."""
    try:
        return next((cells for cells in csv.reader(file, delimiter=separator, strict=True) if cells), [])
    except csv.Error as error:
        raise ValueError(f"{getattr(file, 'name', 'the table')}, line 1: no header: {error}.") from None


def json_rows(file: IO[str]) -> Iterator[Read]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            row = error
        yield (line, row, "") if isinstance(row, dict) else (line, {}, f"is no JSON object ({row})")
