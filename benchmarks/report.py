"""The tables of measured numbers in the documentation: `python -m benchmarks.report [--check]`.

In README.md, benchmarks/README.md, checkpoints/README.md and docs/*.md each generated table is between the lines
`<!-- report: NAME -->` and `<!-- end -->`. This command replaces it with the table of that name in
benchmarks/tables.md, whose numbers come from `benchmarks/results/*.json` and `checkpoints/*/metrics.json`. `--check`
writes nothing and exits with code 1 if a table is stale.
"""

import json
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- report: ", "<!-- end -->"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
MEASURES = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity")
COLUMNS = {
    "demo": MEASURES,
    "tuning": (*MEASURES, "gradient_cosine_per_batch"),
    "before": tuple(f"before_{name}" for name in MEASURES),
    "remedy": ("before_reward", "reward", "before_availability", *MEASURES[1:]),
    "rfnet": ("availability_f1", "availability_ap", "macro_f1", "ece"),
    "recall": tuple(
        f"recall_{name}"
        for name in ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")
    ),
    "cost": ("seconds", "MiB", "seconds / ReFL", "MiB / AlignProp"),
    "adaptation": ("frechet", "aesthetic", "clip", "hps", "availability"),
}


class Node(dict):
    """A JSON object; formatted as the cells of one of `COLUMNS`, or as mean ± standard deviation if it has a mean."""

    def __format__(self, columns: str) -> str:
        if "mean" in self:
            return " ± ".join(f"{self[name]:.3f}" for name in ("mean", "sd") if self.get(name))
        cells = [self.get(name, "-") for name in COLUMNS[columns]]
        return " | ".join(f"{cell:.3f}" if isinstance(cell, float) else f"{cell}" for cell in cells)


class NotRun(dict):
    """The results of a benchmark that has not been run: a dash in every cell."""

    def __missing__(self, _: str) -> "NotRun":
        return self

    def __format__(self, columns: str) -> str:
        return " | ".join("-" for _ in COLUMNS.get(columns, "1"))


class Measured(dict):
    """Results of which some are missing, like those of `NotRun`."""

    def __missing__(self, _: str) -> NotRun:
        return NotRun()


class Sizes(dict):
    """The number of parameters in a folder of checkpoints/."""

    def __missing__(self, folder: str) -> str:
        total = 0
        for path in (ROOT / "checkpoints" / folder).rglob("*.safetensors"):
            with safe_open(path, "numpy") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            total += sum(prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS))
        return f"{total / 1e6:.1f} M"


def read(path: Path) -> Any:
    """A JSON file; metrics named test/x are below test."""

    def node(pairs: list[tuple[str, Any]]) -> Node:
        found = Node()
        for name, value in pairs:
            split, _, metric = name.partition("/")
            if split.startswith("test"):
                found.setdefault(split, Node())[metric] = value
            else:
                found[name] = value
        return found

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=node)


def gpu(folder: Path) -> Measured:
    """The cases of `benchmarks.gpu` by section, and `card` and `date`: of the card that was measured last, if any."""

    def cases(section: dict[str, Any]) -> Measured:
        return Measured({name: Measured(found) for name, found in section["cases"].items()})

    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("gpu-*.json"))]
    if not cards:
        return Measured()
    last = max(cards, key=lambda card: max(section["date"] for section in card.values()))
    newest = max(last.values(), key=lambda section: section["date"])
    about = {"card": newest["machine"], "date": newest["date"], "torch": newest.get("torch", "-")}
    return Measured(about | {name: cases(section) for name, section in last.items()})


def numbers() -> dict[str, Any]:
    """All results by file, metrics by checkpoint, sizes, and costs with ratios."""
    found: dict[str, Any] = {"adaptation": NotRun(), "gpu": gpu(ROOT / "benchmarks/results")}
    found |= {path.stem: read(path) for path in (ROOT / "benchmarks/results").glob("*.json")}
    found["ablations"], found["auc_judd"] = found["rfnet"], found["saliency"]  # names that checkpoints have too
    found |= {path.parent.name: read(path) for path in (ROOT / "checkpoints").glob("*/metrics.json")}
    cost = found["tuning"]["showroom-generator controlnet size=null batch=8 steps=40 cpu float32"]
    ways = cost["ways"]
    for way in ways.values():
        way["seconds / ReFL"] = f"{way['seconds'] / ways['refl']['seconds']:.2f}"
        way["MiB / AlignProp"] = f"{way['MiB'] / ways['alignprop']['MiB']:.2f}"
        way["MiB"] = f"{way['MiB']:.0f}"
    found["cost"] = {**ways, "machine": cost["machine"]}
    found["cost_sd15"] = found["tuning"]["sd15 controlnet size=128 batch=1 steps=40 cpu float32"]["ways"]
    return found | {"size": Sizes()}


def sections(page: str) -> Iterator[tuple[str, str, str]]:
    """Text before each table, its name and the table; finally the remaining text, "" and ""."""
    before, *parts = page.split(BEGIN)
    for part in parts:
        name, begun, rest = part.partition(" -->\n")
        body, ended, rest = rest.partition(END)
        if not (begun and ended):
            raise ValueError(f"{BEGIN}{name.splitlines()[0]}: {END} is missing.")
        yield before, name, body
        before = rest
    yield before, "", ""


def tables() -> dict[str, str]:
    found = numbers()
    page = (ROOT / "benchmarks/tables.md").read_text(encoding="utf-8")
    return {name: body.strip().format(**found) for _, name, body in sections(page) if name}


def filled(page: str, known: dict[str, str]) -> str:
    """The page with updated tables. Raises ValueError for an unknown table or one without end."""
    text = ""
    for before, name, _ in sections(page):
        if name and name not in known:
            raise ValueError(f"{BEGIN}{name}: unknown; choices: {', '.join(known)}.")
        text += before + (f"{BEGIN}{name} -->\n{known[name]}\n\n{END}" if name else "")
    return text


def main() -> int:
    pages = [ROOT / name for name in ("README.md", "benchmarks/README.md", "checkpoints/README.md")]
    check, stale, known = "--check" in sys.argv[1:], [], tables()
    for path in [*pages, *sorted((ROOT / "docs").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        if (new := filled(old, known)) != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    print(f"{'stale' if check else 'updated'}: {', '.join(stale)}" if stale else "all tables are up to date")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
