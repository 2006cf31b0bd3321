"""The output of commands that write row by row: results, failed rows and a progress record for resuming."""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from src.runtime.command import printable
from src.runtime.files import TABLES, atomic, write_json

LISTED = 20  # failed rows printed at the end; the file has all of them


class FailedRow(NamedTuple):
    """A row without a result, and the reason. Rows are counted from 1."""

    row: int
    key: str
    file: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """Progress of a run: number of rows and length of its two tables. `settings` must not change when it resumes."""

    settings: dict[str, Any]
    rows: int = 0
    failed: int = 0
    table_bytes: int = 0
    failed_bytes: int = 0
    complete: bool = False


class RunOutput:
    """A table of results, a table of failed rows and a progress record.

    `out` is a .csv or .jsonl table in the order of the input (`add`, `progress.rows`), with `<out>.failed.csv` and
    `<out>.run.json`; or a folder with manifest.jsonl, failed.csv and run.json, whose results have keys and come in any
    order (`results`). Rows after the recorded progress were written by an interrupted run and are removed.

    inputs: files that the run reads. files: files that it writes besides its tables. Raises ValueError if the output
    belongs to a run with other settings, or to no run, or would overwrite an input. Only `resume=False` replaces a
    table of other settings, and only one that has a record.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        resume: bool,
        inputs: Iterable[Path] = (),
        files: Iterable[Path] = (),
    ) -> None:
        self.out, self.folder = out, out.suffix not in TABLES
        names = ("manifest.jsonl", "failed.csv", "run.json")
        own = [out / name for name in names] if self.folder else [out, *(Path(f"{out}.{name}") for name in names[1:])]
        self.table, self.failed, self.record = own
        self.again = "choose another out" + ("" if self.folder else ", or resume=false to start again")
        written = {file.resolve() for file in own}
        if read := next((file for file in inputs if file.resolve() in written), None):
            raise ValueError(f"out={out} would overwrite the input {read}; choose another out.")
        self.progress, known = Progress(settings), self._recorded()
        if self.folder and not resume and self.table.exists():
            raise ValueError(f"{out} has results; use resume=true, or another out.")
        if resume and self.table.exists() and known and known.rows > (known.failed if self.folder else 0):
            self._check(known)
            self.progress = known
            self._record()
        else:
            tables = () if known else (self.table, self.failed)
            others = () if known and not self._changed(known) else files
            if foreign := next((file for file in (*tables, *others) if file.exists()), None):
                raise ValueError(f"{foreign} was not written by this command; choose another out.")
            for file in (self.table, self.failed):
                file.unlink(missing_ok=True)
            self._record()  # first, because results need a record
            self.table.touch()
        for file, size in ((self.table, self.progress.table_bytes), (self.failed, self.progress.failed_bytes)):
            if file.exists() and file.stat().st_size > size:
                with file.open("ab") as handle:
                    handle.truncate(size)

    def _recorded(self) -> Progress | None:
        """The record of the run that wrote the output, if there is one."""
        if not self.record.exists():
            return None
        try:
            return Progress(**json.loads(self.record.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{self.record} is not a valid record of a run; choose another out.") from None

    def _changed(self, known: Progress) -> list[str]:
        """The names of the settings that differ."""
        new, old = json.loads(json.dumps(self.progress.settings)), known.settings
        return [name for name in new | old if new.get(name) != old.get(name)]

    def _check(self, known: Progress) -> None:
        if changed := self._changed(known):
            raise ValueError(f"{self.out} has results of a run that differs in {', '.join(changed)}; {self.again}.")
        for file, size in ((self.table, known.table_bytes), (self.failed, known.failed_bytes)):
            if not self.folder and (file.stat().st_size if file.exists() else 0) < size:
                raise ValueError(f"{file} is shorter than in {self.record.name}: it was edited; {self.again}.")

    def _record(self) -> None:
        write_json(self.record, asdict(self.progress))

    def results(self, kept: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
        """The results in the manifest by key, filtered by `kept`. All other rows have to be computed."""
        rows = {}
        with self.table.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    rows[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"{self.table}, line {number} is damaged; delete it and resume.") from None
        rows = {key: row for key, row in rows.items() if kept(row)}
        with atomic(self.table) as part:
            part.write_bytes(_jsonl(rows.values()))
        self.failed.unlink(missing_ok=True)
        self.progress = Progress(self.progress.settings, len(rows), table_bytes=self.table.stat().st_size)
        self._record()
        return rows

    def add(self, rows: list[dict[str, Any]], failed: list[FailedRow]) -> None:
        """Appends results and failed rows."""
        before = self.progress
        if self.table.suffix == ".csv":
            cells = [list(row.values()) for row in rows]
            lines = _csv([list(rows[0]), *cells] if cells and not before.table_bytes else cells)
        else:
            lines = _jsonl(rows)
        errors = _csv([FailedRow._fields, *failed] if failed and not before.failed_bytes else failed)
        for file, data in ((self.table, lines), (self.failed, errors)):
            try:
                if data:
                    with file.open("ab") as handle:
                        handle.write(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(file)) from None
        self.progress = replace(
            before,
            rows=before.rows + len(rows) + len(failed),
            failed=before.failed + len(failed),
            table_bytes=before.table_bytes + len(lines),
            failed_bytes=before.failed_bytes + len(errors),
        )
        self._record()

    def close(self) -> None:
        self.progress = replace(self.progress, complete=True)
        self._record()

    def report(self, done: str) -> int:
        """Prints the number of results followed by `done`, and the first failed rows; returns the exit code."""
        print(f"{self.progress.rows - self.progress.failed} {done}")
        if not (failed := self.progress.failed):
            return 0
        print(f"{failed} failed row{'s' if failed > 1 else ''} in {self.failed}:")
        with self.failed.open(encoding="utf-8", newline="") as file:
            for row in islice(csv.DictReader(file), LISTED):
                place = f"{row['file']}: " if row["file"] else ""
                print(printable(f"  row {row['row']} ({row['key']}): {place}{row['reason']}"))
        if failed > LISTED:
            print(f"  and {failed - LISTED} more")
        return 1


def settings_of(out: Path) -> dict[str, Any]:
    """The settings in the record of the run that wrote the table `out`; empty if there is no valid record."""
    try:
        return dict(json.loads(Path(f"{out}.run.json").read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


class _Lines(list[str]):
    """A file that keeps what each call writes."""

    def write(self, text: str) -> None:
        self.append(text)


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    # Cells with a carriage return are quoted only if it is part of the line's end (Python 3.11).
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    text = "".join(line.removesuffix("\r\n") + "\n" for line in lines)
    return text.encode(errors="backslashreplace")  # for file names that are not UTF-8


def _jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode(errors="backslashreplace")  # half a character becomes its JSON escape
