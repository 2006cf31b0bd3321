"""Selects images by their scores: `python -m src.select table=pool.csv scores=scores.csv out=selected.csv`.

`table` has one image per row, several for a prompt, as `src.generate pool=true` writes it; `scores` is what `src.score`
made of that table with any reward. `out` has the selected rows, with `value` and `kind`, and reads as a table
(`src/data/ads.py`) to train on: `python -m src.fit model=denoiser data=images data.source.table=selected.csv`.

rule=threshold (arXiv 2312.10240, section 6): of each prompt the `per_prompt` best images with a value of at least
`threshold`. rule=softmax (Wu et al., ICCV 2023, arXiv 2303.14420): of the n images of a prompt the best if its
probability under a softmax of scale * value is above alpha / n, and the worst, as a negative, if its probability under
a softmax of -scale * value is; prompts of fewer than `least` images are left out.
Exit code 0: images were selected; 2: none can be.
"""

import csv
import math
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from src.data.batch import IMAGE_FIELDS
from src.data.tables import TableReader
from src.runtime.command import command
from src.runtime.files import atomic

RULES = ("threshold", "softmax")


class Chosen(NamedTuple):
    """A selected row: its place among the images of its prompt, "positive" or "negative"."""

    index: int
    kind: str


def by_threshold(values: list[float], threshold: float, per_prompt: int) -> list[Chosen]:
    """The best of the images of a prompt, all of them at or above the threshold; the first of equal ones."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    return [Chosen(index, "positive") for index in order[:per_prompt] if values[index] >= threshold]


def by_softmax(values: list[float], scale: float, alpha: float, least: int) -> list[Chosen]:
    """The best and the worst image of a prompt, each if it stands out; the first of equal ones."""
    if len(values) < max(least, 2):
        return []
    found = []
    for sign, kind in ((1.0, "positive"), (-1.0, "negative")):
        logits = [sign * scale * value for value in values]
        top = max(logits)
        if 1 / sum(math.exp(logit - top) for logit in logits) > alpha / len(values):
            found.append(Chosen(logits.index(top), kind))
    return found


def scored(table: Path, scores: Path) -> tuple[list[str], dict[str, list[tuple[float, dict[str, str]]]]]:
    """The columns of the table, and the rows of each prompt that have a score, with it.

    Raises ValueError naming file and line for a bad row, a key that is scored twice, a value that is no finite number,
    and if no row has a score.
    """
    values: dict[str, float] = {}
    for line, cells, problem in TableReader(scores, ("key", "value")):
        if problem or cells["key"] in values:
            raise ValueError(f"{scores}, line {line}: {problem or 'the key occurs twice: ' + cells['key']}.")
        try:
            values[cells["key"]] = float(cells["value"])
        except ValueError:
            raise ValueError(f"{scores}, line {line}: value is {cells['value']!r}, not a number.") from None
        if not math.isfinite(values[cells["key"]]):
            raise ValueError(f"{scores}, line {line}: value is {cells['value']}.")
    reader, prompts = TableReader(table, ("image", "prompt")), defaultdict(list)
    for line, cells, problem in reader:
        if problem:
            raise ValueError(f"{table}, line {line}: {problem}.")
        key = cells.get("key", cells["image"])
        if key in values:
            prompts[cells["prompt"]].append((values[key], {"key": key} | cells))
    if not prompts:
        raise ValueError(f"{scores} has no score of a row of {table}: the keys differ.")
    return reader.columns or list(next(iter(prompts.values()))[0][1]), dict(prompts)


@command("select")
def main(config: DictConfig) -> int:
    table, scores, out = Path(config.table), Path(config.scores), Path(config.out)
    if config.rule not in RULES:
        raise ValueError(f"rule={config.rule}: choose one of {', '.join(RULES)}.")
    if config.rule == "threshold" and config.threshold is None:
        raise ValueError("rule=threshold needs threshold=NUMBER, in the units of the scores.")
    if out.suffix != ".csv":
        raise ValueError(f"out={out}: the selected rows are written as .csv.")
    if out.resolve() in (table.resolve(), scores.resolve()):
        raise ValueError(f"out={out} would replace a table that is read; choose another out.")
    columns, prompts = scored(table, scores)
    names = list(dict.fromkeys(["key", *columns, "value", "kind"]))
    counts: dict[str, int] = defaultdict(int)
    rows = []
    for images in prompts.values():
        values = [value for value, _ in images]
        if config.rule == "threshold":
            chosen = by_threshold(values, config.threshold, config.per_prompt)
        else:
            chosen = by_softmax(values, config.scale, config.alpha, config.least)
        for index, kind in chosen:
            value, cells = images[index]
            rows.append(moved(cells, table.parent, out.parent) | {"value": value, "kind": kind})
            counts[kind] += 1
    if not rows:
        raise ValueError(f"no image of {len(prompts)} prompts is selected; the rule is too strict for these scores.")
    with atomic(out) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    total = sum(map(len, prompts.values()))
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{told} of {total} scored images of {len(prompts)} prompts in {out}")
    return 0


def moved(cells: dict[str, str], old: Path, new: Path) -> dict[str, Any]:
    """The cells with the paths of images relative to another folder."""
    return {
        name: os.path.relpath(old / cell, new) if name in IMAGE_FIELDS and cell and not os.path.isabs(cell) else cell
        for name, cell in cells.items()
    }


if __name__ == "__main__":
    sys.exit(main())
