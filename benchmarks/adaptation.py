"""Preference alignment of a generator: `python -m benchmarks.adaptation [KEY=VALUE ...] [-- OPTIONS OF src.fit]`.

The recipe of Wu et al. (ICCV 2023, arXiv 2303.14420) by the commands of this project. For each seed: a pool of images
by `src.generate`, their scores by `src.score`, good and bad ones by `src.select rule=softmax`, two runs of `src.fit
experiment=adapt`, and images of test products, always with the same noise, by
  base         the generator                             marked    the same with the identifier as negative prompt
  regularized  tuned on the regularization images only   unmarked  adapted, but sampled without the identifier
  adapted      tuned on good, bad and regularization images, sampled with the identifier as negative prompt
Measures: Frechet distance to the reference images in the features of a network (the FID, if that is inception), the
mean of each reward, and the share that a judge, which chose nothing, accepts. A reward is `NAME=CHOICE [KEY=VALUE ...]`
with a choice of conf/reward; `select`, which scores the pool, and `judge`, or null, have no NAME. Prints a table, and
writes `benchmarks/results/NAME.json` and, of the first seed, `NAME.jpg`. The same command resumes. Options:
  generator=showroom experiment=adapt select=hps scale=1.0 attempts=4 share=0.5 identifier='Weird image. ' seeds=0,1,2
  rewards='hps=hps;clip=clip;aesthetic=rahf weights.plausibility=0.0 weights.aesthetics=1.0' judge='rfnet ...'
  features=checkpoints/reader features_weights=null runs=runs/adaptation name=adaptation threads=2 device=auto
the showroom: pool=512 num=512 good=1024 (products of the pool and of the test, regularization and reference images)
size=128; your data: products=DIR prompts=FILE test_products=DIR test_prompts=FILE regularization=TABLE reference=TABLE
"""

import csv
import importlib
import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.image_measures import JUDGE, features_of, measured
from src.build import build
from src.config import compose
from src.data import image_table, products
from src.figures.images import draw_columns
from src.models.features import feature_net
from src.rewards.base import Reward
from src.rewards.pixels import pixels
from src.runtime.checkpoint import fingerprint
from src.runtime.command import exit_code
from src.runtime.device import machine, torch_device
from src.runtime.files import write_json
from src.runtime.progress import columns

WORDS = {
    "generator": "showroom", "experiment": "adapt", "select": "hps", "scale": "1.0", "attempts": "4", "share": "0.5",
    "identifier": "Weird image. ", "seeds": "0,1,2",
    "rewards": "hps=hps;clip=clip;aesthetic=rahf weights.plausibility=0.0 weights.aesthetics=1.0",
    "judge": "rfnet checkpoint=checkpoints/judge depth=checkpoints/judge-depth saliency=checkpoints/judge-saliency",
    "features": "checkpoints/reader", "features_weights": "null", "runs": "runs/adaptation", "name": "adaptation",
    "threads": "2", "device": "auto", "pool": "512", "num": "512", "good": "1024", "size": "128",
    "products": "showroom", "prompts": "showroom", "test_products": "showroom", "test_prompts": "showroom",
    "regularization": "showroom", "reference": "showroom",
}  # fmt: skip
FREE = ("seeds", "runs", "name", "threads", "device")  # of which the figures of a seed do not depend
# Folder and file in runs/showroom of the data that the showroom stands for.
SHOWROOM = {
    "products": ("pool", "products"), "prompts": ("pool", "prompts.csv"), "test_products": ("test", "products"),
    "test_prompts": ("test", "prompts.csv"), "regularization": ("good", "images.csv"),
    "reference": ("reference", "images.csv"),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
SHOWN = 8  # products in the sheet


def run(name: str, words: Sequence[str]) -> None:
    """Runs a command of src in this process; SystemExit if it fails. It tells its own errors."""
    before, sys.argv = sys.argv, [name, *words]
    try:
        code = importlib.import_module(f"src.{name}").main()
    finally:
        sys.argv = before
    if code:
        raise SystemExit(f"adaptation: python -m src.{name} {shlex.join(words)} ended with code {code}.")


def chosen(group: str, text: str) -> list[str]:
    """`CHOICE [KEY=VALUE ...]` as words of a command."""
    choice, *rest = shlex.split(text)
    return [f"{group}={choice}", *(f"{group}.{word}" for word in rest)]


def rewards_of(words: Mapping[str, str]) -> dict[str, Reward]:
    """All rewards by name, `select` and the judge among them. SystemExit names all that cannot be built, and why."""
    if odd := [text for text in words["rewards"].split(";") if "=" not in text.strip().split(" ")[0]]:
        raise SystemExit(f"adaptation: rewards={words['rewards']}: {odd[0]!r} is not NAME=CHOICE [KEY=VALUE ...].")
    texts = dict(text.strip().split("=", 1) for text in words["rewards"].split(";")) | {"select": words["select"]}
    texts |= {JUDGE: words["judge"]} if words["judge"] != "null" else {}
    found, missing = {}, []
    for name, text in texts.items():
        try:
            found[name] = build(compose("score", chosen("reward", text)).reward)
        except ValueError as error:
            missing.append(f"  {name}: reward={text}: {error}")
    if missing:
        raise SystemExit("\n".join(["adaptation: these rewards are missing; train them, or name others:", *missing]))
    return found


def data_of(words: Mapping[str, str]) -> dict[str, Path]:
    """The places of all data; the showroom's are written first."""
    root, size = Path(words["runs"]) / "showroom", int(words["size"])
    write = {
        "pool": partial(products.write_example, count=int(words["pool"]), split="train"),
        "test": partial(products.write_example, count=int(words["num"])),
        "good": partial(image_table.write_example, count=int(words["good"]), size=size),
        "reference": partial(image_table.write_example, count=int(words["good"]), size=size, split="test"),
    }
    places = {name: Path(words[name]) for name in SHOWROOM}
    for name, (folder, file) in SHOWROOM.items():
        if words[name] == "showroom":
            places[name], done = root / folder / file, root / f"{folder}.done"
            if not done.exists():
                shutil.rmtree(root / folder, ignore_errors=True)  # of a run that was interrupted
                write[folder](root / folder)
                done.touch()
    return places


def generated(out: Path, products: Path, prompts: Path, words: Mapping[str, str], more: Sequence[str]) -> Path:
    """The table of the images in `out`. The reward, which `src.generate` needs, decides nothing here."""
    common = [f"threads={words['threads']}", f"device={words['device']}", "threshold=0", f"out={out}"]
    parts = [*chosen("generator", words["generator"]), *chosen("reward", words["select"])]
    run("generate", [*parts, f"products={products}", f"prompts={prompts}", *common, *more])
    return out / "images.csv"


def selected_of(out: Path, seed: int, words: Mapping[str, str], data: Mapping[str, Path]) -> Path:
    """The table of the good and bad images of a pool, in `out`."""
    keep = ["pool=true", f"attempts={words['attempts']}", f"seed={seed}"]
    pool = generated(out / "pool", data["products"], data["prompts"], words, keep)
    table, scores, common = f"table={pool}", out / "scores.csv", [f"threads={words['threads']}"]
    reward = [*chosen("reward", words["select"]), f"device={words['device']}"]
    run("score", [*reward, table, f"out={scores}", *common])
    if not (out / "selected.csv").is_file():
        rule = ["rule=softmax", f"scale={words['scale']}", f"least={words['attempts']}"]
        run("select", [table, f"scores={scores}", f"out={out / 'selected.csv'}", *rule, *common])
    return out / "selected.csv"


def made(seed: int, words: Mapping[str, str], data: Mapping[str, Path], more: Sequence[str]) -> dict[str, Path]:
    """The recipe with one seed: the table of the test images of each way."""
    out = Path(words["runs"]) / f"seed{seed}"
    source = {
        "table": selected_of(out, seed, words, data), "regularization": data["regularization"],
        "identifier": words["identifier"], "val": "0.0", "test": "0.0",
    }  # fmt: skip
    fit = [*chosen("generator", words["generator"]), f"experiment={words['experiment']}", f"seed={seed}"]
    fit += [f"data.source.{name}={value}" for name, value in source.items()]
    fit += ["trainer.limit_val_batches=0", f"threads={words['threads']}", *more]
    folders = {}
    for name, share in (("regularized", "1.0"), ("adapted", words["share"])):
        folders[name] = [f"generator.folder={out / name / 'checkpoint'}"]
        if not (out / name / "checkpoint/metrics.json").is_file():  # the last file that a run writes
            run("fit", [*fit, f"data.source.share={share}", f"out={out / name}", "resume=true"])
    marked = [f"generator.negative_prompt={words['identifier']}"]
    ways = {
        "base": [], "marked": marked, "regularized": folders["regularized"], "unmarked": folders["adapted"],
        "adapted": [*folders["adapted"], *marked],
    }  # fmt: skip
    test = data["test_products"], data["test_prompts"], words
    return {
        way: generated(out / "images" / way, *test, [*own, "attempts=1", f"seed={seed}"]) for way, own in ways.items()
    }


def draw(tables: Mapping[str, Path], file: Path) -> None:
    """Draws the first test products, not selected: one row per product, one column per way."""
    shown = {}
    for way, table in tables.items():
        with table.open(encoding="utf-8", newline="") as lines:
            shown[way] = list(csv.DictReader(lines))[:SHOWN]
    images = {
        way: torch.stack([pixels(tables[way].parent / row["image"]) for row in rows]) for way, rows in shown.items()
    }
    draw_columns(file, images, [row["prompt"] for row in shown["base"]])


def summary(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, and for several seeds standard deviation, of each measure of each way; runs: by seed, way and measure."""
    seeds = list(runs.values())
    return {
        way: {
            name: {"mean": mean(run[way][name] for run in seeds)}
            | ({"sd": stdev(run[way][name] for run in seeds)} if len(seeds) > 1 else {})
            for name in figures
        }
        for way, figures in seeds[0].items()
    }


def main(own: list[str]) -> None:
    if {"-h", "--help"} & {*own}:
        print(__doc__)
        return
    own, more = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    words = WORDS | {name: value for name, _, value in (word.partition("=") for word in own)}
    if foreign := sorted(words.keys() - WORDS.keys()):
        raise SystemExit(f"adaptation: no option {foreign[0]}; choices: {', '.join(WORDS)}")
    torch.set_num_threads(int(words["threads"]))
    device, rewards = torch_device(words["device"]), rewards_of(words)
    net = feature_net(words["features"], None if words["features_weights"] == "null" else words["features_weights"])
    about = {name: value for name, value in words.items() if name not in FREE} | {"fit": shlex.join(more)}
    about |= {f"weights of {name}": fingerprint(reward) for name, reward in rewards.items()}
    file, options = RESULTS / f"{words['name']}.json", Path(words["runs"]) / "options.json"
    if options.is_file() and json.loads(options.read_text(encoding="utf-8")) != about:
        raise SystemExit(f"adaptation: runs={words['runs']} has a run with other options; choose another folder.")
    write_json(options, about)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    runs, kinds = (known.get(name, {}) if known.get("words") == about else {} for name in ("runs", "selected"))
    measures = {name: reward.to(device) for name, reward in rewards.items() if name != "select"}
    data, net = data_of(words), net.to(device)
    for seed in words["seeds"].split(","):
        if seed in runs:
            continue
        tables = made(int(seed), words, data, more)
        reference = features_of(net, data["reference"], device)
        figures = {way: measured(table, measures, net, reference, device) for way, table in tables.items()}
        with (Path(words["runs"]) / f"seed{seed}/selected.csv").open(encoding="utf-8", newline="") as lines:
            kinds[seed] = Counter(row["kind"] for row in csv.DictReader(lines))
        if not runs:
            draw(tables, file.with_suffix(".jpg"))
        runs[seed] = figures
        hardware = f"{machine(device)}, torch {torch.__version__}"
        stamp = {"date": date.today().isoformat(), "machine": hardware, "words": about, "selected": kinds}
        write_json(file, stamp | {"ways": summary(runs), "runs": runs})
    ways = summary(runs)
    names = list(ways["base"])
    print(columns(["", *names], [[way, *(found[name]["mean"] for name in names)] for way, found in ways.items()]))


if __name__ == "__main__":
    sys.exit(exit_code("adaptation", lambda: main(sys.argv[1:])))
