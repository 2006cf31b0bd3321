"""CC against KL against nothing: `python -m benchmarks.regularizers [WORD ...] [-- WORDS OF src.fit]`.

Tunes the same generator in each way and with each seed, each by `python -m src.fit model=rfft`, and sets beside one
another what the judge and the reader say of held-out products: mean and standard deviation over the seeds, and the
cosine between the reward's and the regularizer's gradient. A way is a regularizer, perhaps with its beta and with more
words of src.fit: `'ways=cc;kl@0.3;cc model.reward_augmentation.number=0'`. After a kill the same command goes on.
Writes `benchmarks/results/NAME.json`, `.png`, and `.jpg`: the same products, prompts and noise under the first seed's
generators.
Words: ways=none;kl;cc seeds=0,1,2 name=regularizers runs=runs/regularizers evaluator=showroom
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
from src.figures.images import draw_columns
from src.runtime.resume import differences, flat

WORDS = {
    "ways": "none;kl;cc", "seeds": "0,1,2", "name": "regularizers", "runs": "runs/regularizers",
    "evaluator": "showroom",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
MEASURES = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity", "between_prompts")
GRADIENTS = ("reward_norm", "regularizer_norm", "cosine")  # of the reward's and the regularizer's gradient
SHOWN = 10  # products in the sheet
# May differ between the runs of a table: neither weights nor test measures depend on them.
UNSEEN = ("trainer.limit_val_batches", "trainer.val_check_interval", "checkpoint_every", "threads", "debug", "resume")


def command(way: str, seed: str, words: Mapping[str, str], more: Sequence[str]) -> list[str]:
    """The words of a run; `way` is a regularizer's name, perhaps with @beta, and its own words of src.fit."""
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
    """The test metrics of the run of these words, None: it is not finished.

    Raises ValueError if its folder holds a finished run of other words, or a measure is no number.
    """
    config: Any = OmegaConf.to_container(compose("fit", list(words)), resolve=True)
    out = Path(config["out"])
    file = out / "checkpoint" / "metrics.json"  # the last that a run writes of its checkpoint
    if not file.is_file():
        return None
    old: Any = OmegaConf.to_container(OmegaConf.load(out / "config.yaml"))
    old, new = ({k: v for k, v in flat(told).items() if k not in UNSEEN} for told in (old, config))
    if changed := differences(old, new):
        raise ValueError(f"{out} holds a run with another {changed}; runs=FOLDER begins others.")
    told = json.loads(file.read_text(encoding="utf-8"))
    if odd := [name for name, value in told.items() if value is None]:
        raise ValueError(f"{file}: {', '.join(odd)} is no number: did the training diverge?")
    return told


def logged(run: Path) -> dict[str, float]:
    """Means over a run of what it logged of both gradients, by the logs' names."""
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    known = set(events.Tags()["scalars"])
    names = [f"grad/{name}" for name in GRADIENTS if f"grad/{name}" in known]
    return {name: mean(scalar.value for scalar in events.Scalars(name)) for name in names}


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, of several runs standard deviation, and the runs' own values of every measure, before and after.

    Also of the gradients' means.
    """
    names = {f"{when}{name}": f"test/{when}{name}" for when in ("before_", "") for name in MEASURES}
    names |= {f"gradient_{name}": f"grad/{name}" for name in GRADIENTS}
    values = {name: [run[key] for run in runs] for name, key in names.items() if key in runs[0]}
    return {
        name: {"mean": mean(v), **({"sd": stdev(v), "runs": v} if len(v) > 1 else {})} for name, v in values.items()
    }


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lines of a Markdown table: the generator as it was, then each way."""
    names = [name for name in (*MEASURES, "gradient_cosine") if any(name in told for told in found.values())]

    def line(title: str, told: Mapping[str, Mapping[str, float]], when: str) -> str:
        figures = [told.get(when + name, {}) for name in names]
        cells = [" +- ".join(f"{figure[key]:.3f}" for key in ("mean", "sd") if key in figure) for figure in figures]
        return f"| {title} | {' | '.join(cells)} |"

    head = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    first = next(iter(found.values()))
    return "\n".join([*head, line("before", first, "before_"), *(line(way, told, "") for way, told in found.items())])


def draw(found: Mapping[str, Mapping[str, Mapping[str, float]]], file: Path) -> None:
    """Availability over diversity and over attributes, with error bars; up and right is better."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("diversity", "attribute_accuracy"), strict=True):
        before = next(iter(found.values()))
        points = {"before": (before, "before_"), **{way: (told, "") for way, told in found.items()}}
        for way, (told, when) in points.items():
            x, y = told[f"{when}{name}"], told[f"{when}availability"]
            axis.errorbar(x["mean"], y["mean"], xerr=x.get("sd"), yerr=y.get("sd"), fmt="o", capsize=2, label=way)
        axis.set(xlabel=f"{name.replace('_', ' ')} (reader)", ylabel="availability (judge)", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(file, dpi=130)


def draw_ways(runs: Mapping[str, Sequence[str]], file: Path) -> None:
    """The first test products, not chosen: a row each, one picture of the same noise before and under every way."""
    painted: dict[str, Tensor] = {}
    batch: Batch = {}
    for way, words in runs.items():
        config: Any = OmegaConf.to_container(compose("fit", list(words)), resolve=True)
        if not painted:
            data = build(config["data"] | {"batch_size": SHOWN, "transforms": {}, "shares": {}, "num_workers": 0})
            batch = next(iter(data.batches("test", shuffled=True)))
        tuned = {way: str(Path(config["out"]) / "checkpoint")}
        for name, folder in (tuned if painted else {"before": config["generator"]["folder"]} | tuned).items():
            painter = build(config["generator"] | {"folder": folder})
            painted[name] = painter.sample(painter.encode(batch))
    draw_columns(file, painted, batch["prompt"])


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device} ({platform.machine()}), torch {torch.__version__}"


def main() -> None:
    own, more = sys.argv[1:], []
    if {"-h", "--help"} & {*own}:
        print(__doc__)
        return
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    words = WORDS | {name: value for name, _, value in (word.partition("=") for word in own)}
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"regularizers: no word {', '.join(sorted(foreign))}; there are {', '.join(WORDS)}")
    if words["evaluator"] == "none":
        raise SystemExit("regularizers: evaluator=none measures nothing to compare by; it takes a judge and a reader.")
    ways, seeds, found = words["ways"].split(";"), words["seeds"].split(","), {}
    runs = {(way, seed): command(way, seed, words, more) for seed in seeds for way in ways}
    try:
        for run in runs.values():  # all ways of a seed before the next, so that they are compared early
            if measured(run[3:]) is None:
                subprocess.run(run, check=True)
        for way in ways:
            found[way] = summary(
                [(measured(runs[way, seed][3:]) or {}) | logged(folder(way, seed, words)) for seed in seeds]
            )
    except (ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"regularizers: {error}") from error
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    about = {"words": words, "fit": more, "seeds": seeds, "machine": machine()}
    (RESULTS / f"{words['name']}.json").write_text(
        json.dumps({**about, "ways": found}, indent=2) + "\n", encoding="utf-8"
    )
    draw(found, RESULTS / f"{words['name']}.png")
    draw_ways({way: runs[way, seeds[0]][3:] for way in ways}, RESULTS / f"{words['name']}.jpg")


if __name__ == "__main__":
    main()
