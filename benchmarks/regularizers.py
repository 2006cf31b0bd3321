"""Compares regularizers: `python -m benchmarks.regularizers [KEY=VALUE ...] [-- OPTIONS OF src.fit]`.

Tunes the same generator in several ways and with several seeds by `python -m src.fit model=rfft`, and compares the
measures of the held-out evaluators on test products: mean and standard deviation over seeds, 95 % interval over
products, and the cosine between the mean gradients of reward and regularizer. Test records of one product are not
independent, so the bootstrap resamples products; values of a record are averaged over seeds.
A way is a regularizer, optionally with its beta and more options of src.fit: `'ways=cc;kl@0.3;cc model.lr=1e-3'`. The
same command resumes an interrupted benchmark. Writes `benchmarks/results/NAME.json`, `.png`, and `.jpg`: the same
products, prompts and noise with the generators of the first seed.
Options: ways=none;kl;cc seeds=0,1,2 name=regularizers runs=runs/regularizers evaluator=showroom
"""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from src.build import build
from src.config import compose
from src.data.batch import Batch
from src.data.showroom.world import ShowroomSplit
from src.figures.images import draw_columns
from src.metrics.intervals import clustered_interval
from src.runtime.device import machine, torch_device
from src.runtime.resume import differences, flat

WORDS = {
    "ways": "none;kl;cc", "seeds": "0,1,2", "name": "regularizers", "runs": "runs/regularizers",
    "evaluator": "showroom",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
MEASURES = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity", "between_prompts")
GRADIENTS = ("reward_norm", "regularizer_norm", "cosine")  # of the mean gradients of reward and regularizer
SHOWN = 10  # products in the sheet
# May differ between the runs of a table, because they influence neither weights nor test measures.
UNSEEN = ("trainer.limit_val_batches", "trainer.val_check_interval", "checkpoint_every", "threads", "debug", "resume")


def command(way: str, seed: str, words: Mapping[str, str], more: Sequence[str]) -> list[str]:
    """The command of a run; `way`: name of a regularizer, optionally @beta, and options of src.fit."""
    regularizer, *rest = way.split()
    name, _, beta = regularizer.partition("@")
    own = [f"regularizer={name}", *([f"regularizer.beta={beta}"] if beta else []), f"seed={seed}"]
    return [
        sys.executable, "-m", "src.fit", "model=rfft", *own, f"evaluator={words['evaluator']}", *more, *rest,
        f"out={folder(way, seed, words)}", "resume=true",
    ]  # fmt: skip


def folder(way: str, seed: str, words: Mapping[str, str]) -> Path:
    return Path(words["runs"]) / "-".join([*re.split(r"[\s/]+", way), seed])


def measured(words: Sequence[str]) -> dict[str, float] | None:
    """The test metrics of the run with these options; None if it is not finished.

    Raises ValueError if its folder contains a finished run with other options, or a metric is not finite.
    """
    config: Any = OmegaConf.to_container(compose("fit", list(words)), resolve=True)
    out = Path(config["out"])
    file = out / "checkpoint" / "metrics.json"  # the last file of a checkpoint that is written
    if not file.is_file():
        return None
    old: Any = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"))
    old, new = ({k: v for k, v in flat(c).items() if k not in UNSEEN} for c in (old, config))
    if changed := differences(old, new):
        raise ValueError(f"{out} contains a run with another {changed}; choose another runs=FOLDER.")
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if odd := [name for name, value in metrics.items() if value is None]:
        raise ValueError(f"{file}: {', '.join(odd)} is not finite: did the training diverge?")
    return metrics


def logged(run: Path) -> dict[str, float]:
    """Means over a run of the logged gradient norms and cosine, by name."""
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    known = set(events.Tags()["scalars"])
    names = [f"grad/{name}" for name in GRADIENTS if f"grad/{name}" in known]
    return {name: mean(scalar.value for scalar in events.Scalars(name)) for name in names}


def records(run: Path) -> dict[str, dict[str, str]]:
    """The measures of the test records of a run by key; empty for old runs without them."""
    file = run / "figures" / "measures.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["key"]: row for row in csv.DictReader(lines)}


def products(words: Sequence[str], keys: Iterable[str]) -> dict[str, str]:
    """The product of each test record; for data sets other than the showroom, the key."""
    split = build(compose("fit", list(words)).data.source).split("test")
    if not isinstance(split, ShowroomSplit):
        return {key: key for key in keys}
    return {key: split.scene(int(key.rpartition("-")[2])).brief.item.name for key in keys}


def intervals(runs: Sequence[Mapping[str, Mapping[str, str]]], product: Mapping[str, str]) -> dict[str, list[float]]:
    """95 % intervals of the measures before and after tuning, and of the gains, by name.

    Records without a value, such as the attribute accuracy of a prompt without attributes, are ignored.
    """
    found: dict[str, list[float]] = {}
    for name in MEASURES:
        values: dict[str, list[float]] = {"before_": [], "": [], "gain_": []}
        clusters = []
        for key in runs[0]:
            if name in runs[0][key]:
                before, after = (mean(float(run[key][when + name]) for run in runs) for when in ("before_", ""))
                if not math.isnan(before + after):
                    clusters.append(product[key])
                    for when, value in (("before_", before), ("", after), ("gain_", after - before)):
                        values[when].append(value)
        found |= {when + name: list(clustered_interval(v, clusters)) for when, v in values.items() if v}
    return found


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, and for several runs standard deviation and values, of all measures before and after tuning."""
    names = {f"{when}{name}": f"test/{when}{name}" for when in ("before_", "") for name in MEASURES}
    names |= {f"gradient_{name}": f"grad/{name}" for name in GRADIENTS}
    values = {name: [run[key] for run in runs] for name, key in names.items() if key in runs[0]}
    return {
        name: {"mean": mean(v), **({"sd": stdev(v), "runs": v} if len(v) > 1 else {})} for name, v in values.items()
    }


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table: the generator before tuning, then each way."""
    names = [name for name in (*MEASURES, "gradient_cosine") if any(name in values for values in found.values())]

    def line(title: str, values: Mapping[str, Mapping[str, Any]], when: str) -> str:
        figures = [values.get(when + name, {}) for name in names]
        cells = [" +- ".join(f"{figure[key]:.3f}" for key in ("mean", "sd") if key in figure) for figure in figures]
        limits = [
            "({:.3f} to {:.3f})".format(*figure["interval"]) if "interval" in figure else "" for figure in figures
        ]
        cells = [f"{cell} {limit}".rstrip() for cell, limit in zip(cells, limits, strict=True)]
        return f"| {title} | {' | '.join(cells)} |"

    head = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    first = next(iter(found.values()))
    return "\n".join(
        [*head, line("before", first, "before_"), *(line(way, values, "") for way, values in found.items())]
    )


def draw(found: Mapping[str, Mapping[str, Mapping[str, float]]], file: Path) -> None:
    """Plots availability over diversity and over attribute accuracy with error bars; top right is best."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("diversity", "attribute_accuracy"), strict=True):
        before = next(iter(found.values()))
        points = {"before": (before, "before_"), **{way: (values, "") for way, values in found.items()}}
        for way, (values, when) in points.items():
            x, y = values[f"{when}{name}"], values[f"{when}availability"]
            axis.errorbar(x["mean"], y["mean"], xerr=x.get("sd"), yerr=y.get("sd"), fmt="o", capsize=2, label=way)
        axis.set(xlabel=f"{name.replace('_', ' ')} (reader)", ylabel="availability (judge)", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(file, dpi=130)


def draw_ways(runs: Mapping[str, Sequence[str]], file: Path) -> None:
    """Draws the first test products, not selected: one row per product, the same noise before and after tuning."""
    images: dict[str, Tensor] = {}
    batch: Batch = {}
    for way, words in runs.items():
        config: Any = OmegaConf.to_container(compose("fit", list(words)), resolve=True)
        if not images:
            data = build(config["data"] | {"batch_size": SHOWN, "transforms": {}, "shares": {}, "num_workers": 0})
            batch = next(iter(data.batches("test", shuffled=True)))
        tuned = {way: str(Path(config["out"]) / "checkpoint")}
        for name, folder in (tuned if images else {"before": config["generator"]["folder"]} | tuned).items():
            net = build(config["generator"] | {"folder": folder})
            images[name] = net.sample(net.encode(batch))
    draw_columns(file, images, batch["prompt"])


def main() -> None:
    own, more = sys.argv[1:], []
    if {"-h", "--help"} & {*own}:
        print(__doc__)
        return
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    words = WORDS | {name: value for name, _, value in (word.partition("=") for word in own)}
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"regularizers: no option {', '.join(sorted(foreign))}; choices: {', '.join(WORDS)}")
    if words["evaluator"] == "none":
        raise SystemExit("regularizers: evaluator=none cannot be used; a judge and a reader are needed.")
    ways, seeds, found = words["ways"].split(";"), words["seeds"].split(","), {}
    sizes: dict[str, int] = {}
    runs = {(way, seed): command(way, seed, words, more) for seed in seeds for way in ways}
    try:
        for run in runs.values():  # all ways of a seed before the next seed, for an early comparison
            if measured(run[3:]) is None:
                subprocess.run(run, check=True)
        for way in ways:
            folders = [folder(way, seed, words) for seed in seeds]
            found[way] = summary(
                [(measured(runs[way, s][3:]) or {}) | logged(run) for s, run in zip(seeds, folders, strict=True)]
            )
            if all(rows := [records(run) for run in folders]):
                product = products(runs[way, seeds[0]][3:], rows[0])
                for name, interval in intervals(rows, product).items():
                    found[way].setdefault(name, {})["interval"] = interval
                prompts = {row["prompt"] for row in rows[0].values()}
                sizes = {"records": len(product), "prompts": len(prompts), "products": len({*product.values()})}
    except (ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"regularizers: {error}") from error
    print(table(found))
    if sizes:
        print("Test: {records} records, {prompts} prompts on {products} products.".format(**sizes))
    RESULTS.mkdir(exist_ok=True)
    hardware = f"{machine(torch_device('auto'))}, torch {torch.__version__}"
    about = {"words": words, "fit": more, "seeds": seeds, "machine": hardware, "date": date.today().isoformat()}
    about["test"] = sizes
    (RESULTS / f"{words['name']}.json").write_text(
        json.dumps({**about, "ways": found}, indent=2) + "\n", encoding="utf-8"
    )
    draw(found, RESULTS / f"{words['name']}.png")
    draw_ways({way: runs[way, seeds[0]][3:] for way in ways}, RESULTS / f"{words['name']}.jpg")


if __name__ == "__main__":
    main()
