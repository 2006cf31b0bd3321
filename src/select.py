"""Selects images by their scores: `python -m src.select table=pool.csv scores=scores.csv out=selected.csv`.

`table` has one image per row, several for a prompt, as `src.generate pool=true` writes it; `scores` is what `src.score`
made of that table with any reward. Where `table` has a column `product`, the images of each pair of prompt and product
are compared. `out` has the selected rows, with `value` and `kind`, and reads as a table (`src/data/ads.py`) to train
on: `python -m src.fit model=denoiser data=images data.source.table=selected.csv`.

rule=threshold (arXiv 2312.10240, section 6): of each prompt (and product) the `per_prompt` best images with a value of
at least `threshold`. rule=softmax (Wu et al., ICCV 2023, arXiv 2303.14420): of the n images of a prompt the best if its
probability under a softmax of scale * value is above alpha / n, and the worst, as a negative, if its probability under
a softmax of -scale * value is; prompts of fewer than `least` images are left out. The paper's scale is 1 for values
that are 100 times a cosine, such as those of reward=hps. `data=identified` trains on both.
`out` is a new file: no other is replaced. Exit code 0: images were selected; 2: none can be.
"""

import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from src.data.batch import IMAGE_FIELDS
from src.data.tables import TableReader, write_table
from src.runtime.command import command
from src.runtime.files import new_file

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


def keyed(table: Path, needs: tuple[str, ...]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Line, key and cells of the rows; the key is that of the image if the table has none.

    Raises ValueError naming file and lines for a bad row and for a key that occurs twice.
    """
    lines: dict[str, int] = {}
    for line, cells, problem in TableReader(table, needs):
        if problem:
            raise ValueError(f"{table}, line {line}: {problem}.")
        key = cells["key"] if "key" in cells else cells["image"]
        if (first := lines.setdefault(key, line)) != line:
            raise ValueError(f"{table}, lines {first} and {line} have the same key {key}.")
        yield line, key, cells


def scored(table: Path, scores: Path) -> list[list[tuple[float, dict[str, str]]]]:
    """The rows that have a score, with it, by prompt and product.

    Raises ValueError naming file and line for bad rows, keys that occur twice and values that are no finite number, and
    if no row has a score.
    """
    values: dict[str, float] = {}
    for line, key, cells in keyed(scores, ("key", "value")):
        try:
            values[key] = float(cells["value"])
        except ValueError:
            values[key] = math.nan
        if not math.isfinite(values[key]):
            raise ValueError(f"{scores}, line {line} ({key}): value={cells['value']} is not a finite number.")
    groups = defaultdict(list)
    for _, key, cells in keyed(table, ("image", "prompt")):
        if key in values:
            groups[cells["prompt"], cells.get("product", "")].append((values[key], {"key": key} | cells))
    if not groups:
        raise ValueError(f"{scores} has no score of a row of {table}: the keys differ.")
    return list(groups.values())


@command("select", "out", "table", "scores")
def main(config: DictConfig) -> int:
    table, scores, out = Path(config.table), Path(config.scores), Path(config.out)
    if config.rule not in RULES:
        raise ValueError(f"rule={config.rule}: choose one of {', '.join(RULES)}.")
    if config.rule == "threshold" and type(config.threshold) not in (int, float):
        raise ValueError("rule=threshold needs threshold=NUMBER, in the units of the scores.")
    if out.suffix != ".csv":
        raise ValueError(f"out={out}: the selected rows are written as .csv.")
    new_file(out)
    groups = scored(table, scores)
    columns = dict.fromkeys(name for images in groups for _, cells in images for name in cells)
    counts: dict[str, int] = defaultdict(int)
    rows = []
    for images in groups:
        values = [value for value, _ in images]
        if config.rule == "threshold":
            chosen = by_threshold(values, config.threshold, config.per_prompt)
        else:
            chosen = by_softmax(values, config.scale, config.alpha, config.least)
        for index, kind in chosen:
            value, cells = images[index]
            rows.append(moved(cells, table.parent, out.parent) | {"value": value, "kind": kind})
            counts[kind] += 1
    what = f"{len(groups)} {'pairs of prompt and product' if 'product' in columns else 'prompts'}"
    if not rows:
        raise ValueError(f"no image of {what} is selected; the rule is too strict for these scores.")
    write_table(out, rows, columns)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{told} of {sum(map(len, groups))} scored images of {what} in {out}")
    return 0


def moved(cells: dict[str, str], old: Path, new: Path) -> dict[str, Any]:
    """The cells with the paths of images relative to another folder."""
    return {
        name: os.path.relpath(old / cell, new) if name in IMAGE_FIELDS and cell and not os.path.isabs(cell) else cell
        for name, cell in cells.items()
    }


if __name__ == "__main__":
    sys.exit(main())
