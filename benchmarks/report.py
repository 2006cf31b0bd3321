"""The tables of measured numbers in the documentation: `python -m benchmarks.report [--check]`.

In README.md, benchmarks/README.md, checkpoints/README.md and docs/*.md each table stands between the lines
`<!-- report: NAME -->` and `<!-- end -->`. This command computes it from `benchmarks/results/*.json` and
`checkpoints/*/metrics.json` and replaces it. `--check` writes nothing and exits with code 1 if a table is stale.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- report: ", "<!-- end -->"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
CLASSES = ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")
TUNING = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity")
TRAINABLE = ("controlnet", "unet", "controlnet_lora", "unet_lora")
DEFAULTS = {"none": "`none`", "kl": "`kl`, beta 5", "cc": "`cc`, beta 1"}
ALONG = {f"{name} trainer.max_steps=160": f"{title}, 160 steps" for name, title in DEFAULTS.items()}
BETAS = {
    "none": "`none`", "cc@0.3": "`cc`, beta 0.3", "cc": "`cc`, beta 1", "cc@3": "`cc`, beta 3",
    "cc_authors": "`cc_authors`, beta 50", "kl@1": "`kl`, beta 1", "kl": "`kl`, beta 5", "kl@20": "`kl`, beta 20",
}  # fmt: skip
PAPERS = {
    "RFNet": "2408.00418", "RFFT": "2408.00418", "Stable Diffusion": "2112.10752", "ControlNet": "2302.05543",
    "DPT": "2103.13413", "U2-Net": "2005.09007", "RAHF": "2312.10240", "HPS": "2303.14420",
}  # fmt: skip
AP, OTHER_AP = "[test_perceived/availability_ap]:.3f", "[test_repainted/availability_ap]:.3f"
ZOO = (  # model, task, metric, folder of the weights, words of src.fit
    ("RFNet", "availability of an ad image, five classes", "AP {rfnet[test/availability_ap]:.3f}", "rfnet",
     "`model=rfnet`"),
    ("RFNet reward", "the same, depth and saliency computed from the image",
     f"AP {{rfnet-reward{AP}}}; regenerated images {{rfnet-reward{OTHER_AP}}}", "rfnet-reward",
     "`experiment=rfnet_reward`"),
    ("RFFT", "fine-tune a generator with any reward",
     "availability {demo[test/before_availability]:.3f} → {demo[test/availability]:.3f}",
     "showroom-generator/controlnet", "`model=rfft`"),
    ("Stable Diffusion + ControlNet", "background around a product, 128 px", "MSE {showroom-generator[test/loss]:.3f}",
     "showroom-generator", "`model=denoiser`"),
    ("DPT", "relative inverse depth", "Spearman {depth[test/spearman]:.3f}", "depth", "`model=depth`"),
    ("U2-Net", "saliency", "max-F {saliency[test/max_f]:.3f}", "saliency", "`model=saliency`"),
    ("judge", "held-out evaluator: availability", f"AP {{judge{AP}}}; regenerated images {{judge{OTHER_AP}}}", "judge",
     "`model=judge`, then `experiment=judge`"),
    ("attribute reader", "held-out evaluator: wall and light of a room",
     "accuracy: wall {reader[test/wall]:.3f}, light {reader[test/light]:.3f}", "reader", "`model=reader`"),
    ("RAHF", "heat maps, four scores, misaligned words", "planned", "", ""),
    ("HPS", "preference score", "planned", "", ""),
)  # fmt: skip

Way = Mapping[str, Mapping[str, float]]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8"))


def metrics(checkpoint: str) -> dict[str, float]:
    return json.loads((ROOT / "checkpoints" / checkpoint / "metrics.json").read_text(encoding="utf-8"))


def found() -> dict[str, dict[str, float]]:
    """The metrics of every checkpoint folder."""
    return {path.parent.name: metrics(path.parent.name) for path in (ROOT / "checkpoints").glob("*/metrics.json")}


def parameters(folder: str) -> str:
    """The number of weights below a checkpoint folder, in millions."""
    total = 0
    for path in (ROOT / "checkpoints" / folder).rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        total += sum(prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS))
    return f"{total / 1e6:.1f} M"


def text(value: float | Mapping[str, float] | None, digits: int = 3) -> str:
    """A number; mean ± standard deviation if it is the mean of several runs; "-" if it was not measured."""
    if isinstance(value, Mapping):
        return " ± ".join(f"{value[name]:.{digits}f}" for name in ("mean", "sd") if name in value)
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def zoo() -> str:
    """The models of `ZOO`, each with its metrics and size."""
    lines = []
    for model, task, metric, name, command in ZOO:
        for title, number in PAPERS.items():
            model = model.replace(title, f"[{title}](https://arxiv.org/abs/{number})")
        told = metric.format(**found(), demo=result("demo"))
        where = (
            f"[{name}](checkpoints/{name})" if (ROOT / "checkpoints" / name / "README.md").is_file() else "`make demo`"
        )
        lines.append([model, task, told, *([parameters(name), command, where] if name else "---")])
    return table(["model", "task", "metric", "parameters", "command", "checkpoint"], lines)


def checkpoints() -> str:
    """The shipped folders, as seen from checkpoints/."""
    maps = [
        (
            "",
            f"the judge's own {name} net",
            f"{title} {metrics(f'judge-{name}')[f'test/{key}']:.3f}",
            f"judge-{name}",
            "",
        )
        for name, title, key in (("depth", "Spearman", "spearman"), ("saliency", "max-F", "max_f"))
    ]
    lines = [
        [f"[{name}]({name})", task, parameters(name), metric.format(**found(), demo=result("demo"))]
        for _, task, metric, name, _ in (*ZOO, *maps)
        if (ROOT / "checkpoints" / name / "README.md").is_file() and name
    ]
    return table(["folder", "task", "parameters", "metric on the test split"], lines)


def demo() -> str:
    found = result("demo")
    rows = {"before": "test/before_", "after `make demo`": "test/"}
    return table(
        ["", *map(plain, TUNING)],
        ([title, *(text(found[prefix + name]) for name in TUNING)] for title, prefix in rows.items()),
    )


def matrix() -> str:
    """Availability after tuning by (reward, regularizer) and trainable part; "tested": gated by unit tests only."""
    ways: dict[tuple[str, str], Way] = {("rfnet", name): result("regularizers")["ways"][name] for name in DEFAULTS}
    ways["rfnet", "cc_authors"] = result("betas")["ways"]["cc_authors"]
    (ways["mix", "cc"],) = (way for name, way in result("remedies")["ways"].items() if "reward=mix" in name)
    return table(
        ["`reward=`", "`regularizer=`", *(f"`{name}`" for name in TRAINABLE)],
        (
            [f"`{reward}`", f"`{name}`", text(way["availability"])]
            + ["tested" if reward == "rfnet" else "not run"] * (len(TRAINABLE) - 1)
            for (reward, name), way in ways.items()
        ),
    )


def tuned(file: str, rows: Mapping[str, str], names: Iterable[str] = (*TUNING, "gradient_cosine")) -> str:
    """Ways of tuning in a result of benchmarks.regularizers, and the generator before; `rows`: title of each way."""
    ways, names = result(file)["ways"], list(names)
    first: Way = next(iter(ways.values()))
    lines = [["before tuning", *(text(first.get(f"before_{name}", {}).get("mean")) for name in names)]]
    lines += [[title, *(text(ways[way].get(name)) for name in names)] for way, title in rows.items()]
    return table(["", *map(plain, names)], lines)


def plain(name: str) -> str:
    return "reward, log p(available)" if name == "reward" else name.replace("_", " ")


def remedies() -> str:
    rows = {
        "cc": "`make demo`: `rfnet-reward`, one augmented view, lr 3e-3",
        "cc reward.checkpoint=checkpoints/rfnet": "an RFNet that never saw generated images",
        "cc model.reward_augmentation.number=0": "no reward augmentation",
        "cc model.lr=1e-3": "lr 1e-3",
        "cc reward=mix reward.rewards.second.checkpoint=runs/second-reward/checkpoint": "the mean of two RFNets",
        "cc generator.dilation=8": "`generator.dilation=8`",
    }
    ways, names = result("remedies")["ways"], TUNING[1:]

    def line(way: Way, title: str) -> list[str]:
        gain = way["reward"]["mean"] - way["before_reward"]["mean"]
        return [title, text(gain), text(way["before_availability"]), *(text(way[name]) for name in names)]

    head = ["one change from `make demo`", "reward gain", "availability before", "availability after"]
    return table([*head, *map(plain, names[1:])], (line(ways[way], title) for way, title in rows.items()))


def rfnet() -> str:
    names = ("availability_f1", "availability_ap", "macro_f1", "ece")
    rows = [
        ("[rfnet](../checkpoints/rfnet), all inputs", metrics("rfnet"), "test"),
        ("rfnet, computed maps", metrics("rfnet"), "test_perceived"),
        ("[rfnet-reward](../checkpoints/rfnet-reward), computed maps", metrics("rfnet-reward"), "test_perceived"),
        ("rfnet-reward, regenerated images", metrics("rfnet-reward"), "test_repainted"),
    ]
    ablations = {title: row for title, row in result("rfnet")["rows"].items() if title != "all inputs"}
    rows += [(title.replace("picture", "image"), row["metrics"], "test") for title, row in ablations.items()]
    return table(
        ["", "availability F1", "availability AP", "macro-F1", "ECE"],
        ([title, *(text(of[f"{split}/{name}"]) for name in names)] for title, of, split in rows),
    )


def recall() -> str:
    rows = {
        "rfnet, exact maps": ("rfnet", "test"),
        "rfnet, computed maps": ("rfnet", "test_perceived"),
        "rfnet-reward, computed maps": ("rfnet-reward", "test_perceived"),
        "rfnet-reward, regenerated images": ("rfnet-reward", "test_repainted"),
        "judge, regenerated images": ("judge", "test_repainted"),
    }
    return table(
        ["recall", *map(plain, CLASSES)],
        ([title, *(text(metrics(of)[f"{s}/recall_{name}"], 2) for name in CLASSES)] for title, (of, s) in rows.items()),
    )


def generate() -> str:
    def line(title: str, found: Any) -> list[str]:
        rates = [text(found["available_rate"][attempts - 1]) for attempts in (1, 2, 4, 8)]
        return [title, *rates, text(found["attempts_per_accepted"], 2), text(found["unet_calls_per_accepted"], 0)]

    head = ["generator", "1 attempt", "2", "4", "8", "attempts per accepted image", "UNet calls per accepted image"]
    found = result("generate")
    return table(head, [line("shipped", found["before"]), line("after `make demo`", found["after"])])


def cost() -> str:
    titles = {
        "rfft": "RFFT, one late step per rollout",
        "rfft_draws": "RFFT, three late steps per rollout (default)",
        "rfft_cc": "RFFT with CC, one late step",
        "refl": "ReFL, conditions encoded at every step",
        "refl_once": "ReFL, conditions encoded once",
        "alignprop": "AlignProp, gradient through the whole chain",
    }
    ways = result("tuning")["showroom-generator controlnet size=null batch=8 steps=40 cpu float32"]["ways"]
    refl, chain = ways["refl"]["seconds"], ways["alignprop"]["MiB"]
    rows = [
        [title, text(ways[way]["seconds"]), f"{refl / ways[way]['seconds']:.1f}x", text(ways[way]["MiB"], 0),
         f"{ways[way]['MiB'] / chain:.0%}"]
        for way, title in titles.items()
    ]  # fmt: skip
    return table(["method", "seconds", "speed vs. ReFL", "MiB", "memory vs. AlignProp"], rows)


def cost_sd15() -> str:
    ways = result("tuning")["sd15 controlnet size=128 batch=1 steps=40 cpu float32"]["ways"]
    titles = {"rfft": "RFFT", "rfft_cc": "RFFT with CC"}
    return table(
        ["method", "seconds", "GiB above the loaded model", "GiB in total"],
        (
            [titles[way], text(found["seconds"], 0), text(found["MiB"] / 1024, 1), text(found["all"] / 1024, 1)]
            for way, found in ways.items()
        ),
    )


def speed() -> str:
    rows = {
        "rendering showroom images, one core": ("drawn pictures/s, one core", 0, "images/s"),
        "loading cached showroom images, all fields, one core": ("cached pictures/s, one core", 0, "images/s"),
        "training RFNet, data ready": ("training step pictures/s, data ready", 0, "images/s"),
        "RFNet forward pass with computed maps, data ready": ("bare forward pictures/s", 0, "images/s"),
        "`src.score` from PNG files": ("src.score pictures/s", 0, "images/s"),
        "`src.score` relative to the forward pass": ("src.score over bare forward", 2, ""),
        "indexing an RF1M label file of 10^6 lines": ("indexing 10^6 lines, s", 1, "s"),
        "memory of that index": ("memory of that index, MiB", 0, "MiB"),
    }
    found = result("speed")
    lines = ([title, f"{text(found[name], digits)} {unit}".strip()] for title, (name, digits, unit) in rows.items())
    return table(["measure", "value"], lines)


def shortcuts() -> str:
    told = {name: value for name, value in result("shortcuts").items() if name.startswith("macro-F1")}
    return table(["", "macro-F1"], ([name.removeprefix("macro-F1, "), text(value)] for name, value in told.items()))


def measured() -> str:
    """What each result was measured with: its command, machine and date."""
    lines = []
    for name, about in result("measured").items():
        machine = about.get("machine") or result(name)["machine"]
        day = about.get("date") or result(name)["date"]
        lines.append([f"[{name}](results/{name}.json)", f"`{about['command']}`", machine, day])
    return table(["result", "command", "machine", "date"], lines)


TABLES: dict[str, Callable[[], str]] = {
    **{of.__name__: of for of in (zoo, checkpoints, demo, matrix, remedies, rfnet, recall, generate, cost)},
    **{of.__name__: of for of in (cost_sd15, speed, shortcuts, measured)},
    "regularizers": lambda: tuned("regularizers", DEFAULTS),
    "longer": lambda: tuned("longer", ALONG),
    "betas": lambda: tuned("betas", BETAS),
    "other_judge": lambda: tuned("other_judge", DEFAULTS, (*TUNING, "between_prompts")),
}


def filled(page: str) -> str:
    """The page with every table as it is now. Raises ValueError for an unknown name or a table without an end."""
    before, *parts = page.split(BEGIN)
    for part in parts:
        name, begun, rest = part.partition(" -->\n")
        _, ended, rest = rest.partition(END)
        if not (begun and ended) or name not in TABLES:
            raise ValueError(f"{BEGIN}{name.splitlines()[0]}: unknown, or without {END}; known: {', '.join(TABLES)}.")
        before += f"{BEGIN}{name} -->\n{TABLES[name]()}\n\n{END}{rest}"
    return before


def main() -> int:
    pages = [ROOT / name for name in ("README.md", "benchmarks/README.md", "checkpoints/README.md")]
    stale = []
    for path in [*pages, *sorted((ROOT / "docs").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        if (new := filled(old)) != old:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    check = "--check" in sys.argv[1:]
    print(f"{'stale' if check else 'updated'}: {', '.join(stale)}" if stale else "all tables are up to date")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
