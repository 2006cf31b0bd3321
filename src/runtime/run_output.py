"""A results file that grows row by row and survives a kill: a resumed run goes on exactly where the first stopped."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from src.runtime.files import TABLES, write_json

LISTED = 20  # bad rows shown at the end; the errors file has them all


class Bad(NamedTuple):
    """A row without a score, and why."""

    row: int
    key: str
    file: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far a run is: rows done, and the length of its two files then. `of` is what must not change meanwhile."""

    of: dict[str, Any]
    rows: int = 0
    bad: int = 0
    out_bytes: int = 0
    errors_bytes: int = 0
    complete: bool = False


class RunOutput:
    """The scores, errors and progress files of one run.

    What lies in the files beyond the recorded progress was written while the run was killed: it is cut off.
    Raises ValueError if they belong to another run, or to none.
    """

    def __init__(self, out: Path, of: dict[str, Any], resume: bool) -> None:
        if out.suffix not in TABLES:
            raise ValueError(f"out={out}: scores are written as .csv or .jsonl.")
        self.out, self.errors, self.state = out, Path(f"{out}.errors.csv"), Path(f"{out}.run.json")
        self.progress = Progress(of)
        if resume and out.exists():
            self.progress = self._recorded(of)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            for file in (self.out, self.errors):
                file.unlink(missing_ok=True)
            self._record()  # first: scores without it would belong to no run
            out.touch()
        for file, size in ((out, self.progress.out_bytes), (self.errors, self.progress.errors_bytes)):
            if file.exists() and file.stat().st_size > size:
                with file.open("ab") as handle:
                    handle.truncate(size)

    def _recorded(self, of: dict[str, Any]) -> Progress:
        again = "; choose another out=, or resume=false to begin anew."
        if not self.state.exists():
            raise ValueError(f"{self.out} exists, but {self.state.name} is not beside it: not a run to resume{again}")
        try:
            progress = Progress(**json.loads(self.state.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{self.state} is no record of a run{again}") from None
        if changed := [name for name in of if of[name] != progress.of.get(name)]:
            raise ValueError(f"{self.out} was begun with another {', '.join(changed)}{again}")
        for file, size in ((self.out, progress.out_bytes), (self.errors, progress.errors_bytes)):
            if (file.stat().st_size if file.exists() else 0) < size:
                raise ValueError(f"{file} is shorter than {self.state.name} says: it was edited{again}")
        return progress

    def _record(self) -> None:
        write_json(self.state, asdict(self.progress))

    def add(self, rows: int, scores: list[dict[str, Any]], bad: list[Bad]) -> None:
        """Writes what came of the next `rows` rows."""
        before = self.progress
        if self.out.suffix == ".csv":
            cells = [list(score.values()) for score in scores]
            lines = _csv([list(scores[0]), *cells] if cells and not before.out_bytes else cells)
        else:
            lines = "".join(json.dumps(score, ensure_ascii=False) + "\n" for score in scores).encode()
        errors = _csv([Bad._fields, *bad] if bad and not before.errors_bytes else bad)
        for file, data in ((self.out, lines), (self.errors, errors)):
            if data:
                with file.open("ab") as handle:
                    handle.write(data)
        self.progress = replace(
            before,
            rows=before.rows + rows,
            bad=before.bad + len(bad),
            out_bytes=before.out_bytes + len(lines),
            errors_bytes=before.errors_bytes + len(errors),
        )
        self._record()

    def close(self) -> None:
        self.progress = replace(self.progress, complete=True)
        self._record()

    def report(self) -> int:
        """Says what came out, on stdout, with the first bad rows; returns the exit code."""
        done = self.progress
        print(f"{done.rows - done.bad} scored in {self.out}")
        if not done.bad:
            return 0
        print(f"{done.bad} bad in {self.errors}:")
        with self.errors.open(encoding="utf-8", newline="") as file:
            for bad in islice(csv.DictReader(file), LISTED):
                place = f"{bad['file']}: " if bad["file"] else ""
                print(f"  row {bad['row']} ({bad['key']}): {place}{bad['reason']}")
        if done.bad > LISTED:
            print(f"  and {done.bad - LISTED} more")
        return 1


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
