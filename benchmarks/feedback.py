"""What RAHF's uses during generation gain: `python -m benchmarks.feedback [KEY=VALUE ...]`.

For each seed the generator makes `attempts` images for each of `num` test products of the showroom. The held-out judge
and the attribute reader, by which nothing is steered or chosen, measure
  first      the first attempt                  chosen    the attempt with the highest plausibility by RAHF
  any        the mean of all attempts           repaired  the first attempt, repaired as by `src.repair`
  guided     the first attempt's noise, guided by the gradient of RAHF's plausibility
  mirrored   repaired, but with RAHF's implausibility maps mirrored: the control of the regions it finds
"refused, then accepted" is the share of first attempts refused by the judge whose repair it accepts. Any change makes
it accept some, as the judge itself picked them; `mirrored` shows how many.
Prints a table and writes `benchmarks/results/feedback.json` and, of the first seed, `feedback.jpg`. Seeds that the file
has with the same options are not measured again. Options:
num=128 seeds=0,1,2 attempts=4 candidates=4 scale=0.1 threads=2 device=auto checkpoint=checkpoints/rahf
generator=showroom evaluator=showroom name=feedback
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from src.build import build
from src.config import compose
from src.data.batch import Batch, Record, collate, to_float
from src.data.samplers import EvaluationBatches
from src.data.showroom.world import Showroom
from src.diffusion.generator import Generator
from src.diffusion.guidance import RewardGuidance
from src.diffusion.recurrent import attempt_seed
from src.figures.images import draw_columns
from src.models.rahf.repair import RepairSettings, repair
from src.models.rahf.reward import RAHFReward
from src.models.rfft.evaluator import Evaluator
from src.runtime.checkpoint import fingerprint, load
from src.runtime.device import machine, torch_device
from src.runtime.files import write_json
from src.runtime.progress import columns

WORDS = {
    "num": "128", "seeds": "0,1,2", "attempts": "4", "candidates": "4", "scale": "0.1", "threads": "2",
    "device": "auto", "checkpoint": "checkpoints/rahf", "name": "feedback", "generator": "showroom",
    "evaluator": "showroom",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
WAYS = ("first", "any", "chosen", "repaired", "mirrored", "guided")
BATCH, SHOWN = 32, 6


class Mirrored:
    """A RAHF whose heat maps are mirrored: they mark regions of the same shapes at the wrong places."""

    def __init__(self, rahf: Any) -> None:
        self.rahf, self.device = rahf, rahf.device

    def assess(self, images: Tensor, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        maps, scores = self.rahf.assess(images, prompts)
        return {name: values.flip(-1) for name, values in maps.items()}, scores


@torch.no_grad()
def images_of(
    records: Sequence[Record], generator: Generator, reward: RAHFReward, seed: int, words: Mapping[str, str]
) -> dict[str, Tensor]:
    """Generated images (records, 3, height, width) of each of `WAYS` but any, and of the attempts (attempts, ...)."""
    rahf: Any = reward.rahf
    batch = move_data_to_device(to_float(collate(list(records))), rahf.device)
    seeds = [attempt_seed(seed, number) for number in range(int(words["attempts"]))]
    tries = torch.stack([generator.sample(generator.encode(batch, each)) for each in seeds])
    tries = (tries * 255).round() / 255  # as they are saved
    scores = torch.stack([reward(images, batch).value for images in tries])  # (attempts, records)
    best = scores.argmax(dim=0)
    found = {"attempts": tries, "first": tries[0], "chosen": tries[best, torch.arange(len(best))]}
    settings = RepairSettings(rahf.thresholds["implausibility"], candidates=int(words["candidates"]), seed=seed)
    nets: dict[str, Any] = {"repaired": rahf, "mirrored": Mirrored(rahf)}
    for name, net in nets.items():
        mended = [
            repair(generator, net, record | {"image": (image * 255).round().byte().cpu().numpy()}, settings)
            for record, image in zip(records, tries[0], strict=True)
        ]
        found[name] = torch.stack([each.image for each in mended]).to(tries) / 255
    conditions = generator.encode(batch, seeds[0])
    steer = RewardGuidance(reward, float(words["scale"])).steer(generator, conditions, batch)
    return found | {"guided": generator.sample(conditions, steer)}


@torch.no_grad()
def measured(images: Tensor, evaluator: Evaluator, batch: Batch) -> Tensor:
    """Of images (records, 3, height, width): accepted by the judge, and share of attributes read, (2, records)."""
    judge: Any = evaluator.judge
    accepted = judge(images, batch).value.exp() >= evaluator.threshold
    followed = evaluator.reader.followed(images, batch)  # pyright: ignore[reportOptionalMemberAccess]
    hits = torch.stack([followed[name] for name in evaluator.attributes])
    return torch.stack([accepted.float(), (hits == 1).sum(dim=0) / (hits >= 0).sum(dim=0)])


def one_seed(seed: int, words: Mapping[str, str], draw: Path | None) -> dict[str, dict[str, float]]:
    """The figures of one seed, by way and measure."""
    device = torch_device(words["device"])
    config = compose("fit", ["model=rfft", f"generator={words['generator']}", f"evaluator={words['evaluator']}"])
    generator, evaluator = build(config.generator).eval().requires_grad_(False).to(device), build(config.evaluator)
    reward = RAHFReward(words["checkpoint"]).to(device)
    evaluator.to(device)
    rows, num = Showroom({"test": int(words["num"])}).split("test"), int(words["num"])
    values: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for indices in EvaluationBatches(num, BATCH):
        records = [rows[index] for index in indices]
        images = images_of(records, generator, reward, seed, words)
        batch = move_data_to_device(to_float(collate(records)), device)
        tries = images.pop("attempts")
        for way, some in images.items():
            values[way].append(measured(some, evaluator, batch).cpu())
        values["any"].append(torch.stack([measured(some, evaluator, batch) for some in tries]).mean(dim=0).cpu())
        if draw and not values["first"][1:]:
            shown = {way: images[way][:SHOWN].cpu() for way in ("first", "repaired", "guided", "chosen")}
            draw_columns(draw, shown, batch["prompt"][:SHOWN])
        print(f"seed {seed}: {sum(len(each[0]) for each in values['first'])} of {num} products", flush=True)
    joined = {way: torch.cat(parts, dim=1) for way, parts in values.items()}
    found = {
        way: {"availability": float(each[0].mean()), "attribute_accuracy": float(each[1].nanmean())}
        for way, each in joined.items()
    }
    refused = joined["first"][0] == 0
    for way in ("repaired", "mirrored"):
        found[way]["refused, then accepted"] = float(joined[way][0, refused].mean())
        found[way]["accepted, then refused"] = float(1 - joined[way][0, ~refused].mean())
    return found


def summary(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over seeds of each figure, and of each gain in availability over `first`."""
    runs = [{way: dict(figures) for way, figures in run.items()} for run in runs]
    for run in runs:
        for way in WAYS[1:]:
            run[way]["gain"] = run[way]["availability"] - run["first"]["availability"]
    return {
        way: {
            name: {"mean": mean(run[way][name] for run in runs)}
            | ({"sd": stdev(run[way][name] for run in runs)} if len(runs) > 1 else {})
            for name in runs[0][way]
        }
        for way in WAYS
    }


def main(own: list[str]) -> None:
    words = WORDS | dict(word.split("=", 1) for word in own)
    if unknown := sorted(words.keys() - WORDS.keys()):
        raise SystemExit(f"unknown option {unknown[0]}; there are {', '.join(WORDS)}.")
    torch.set_num_threads(int(words["threads"]))
    file = RESULTS / f"{words['name']}.json"
    free = {"seeds", "threads", "device", "name"}
    about = {name: value for name, value in words.items() if name not in free}
    about["weights"] = fingerprint(load(words["checkpoint"]))
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    runs = known.get("runs", {}) if known.get("words") == about else {}
    for seed in words["seeds"].split(","):
        if seed not in runs:
            runs[seed] = one_seed(int(seed), words, file.with_suffix(".jpg") if not runs else None)
            hardware = f"{machine(torch_device(words['device']))}, torch {torch.__version__}"
            stamp = {"date": date.today().isoformat(), "machine": hardware}
            write_json(file, stamp | {"words": about, "ways": summary(list(runs.values())), "runs": runs})
    ways = json.loads(file.read_text(encoding="utf-8"))["ways"]
    names = list(dict.fromkeys(name for figures in ways.values() for name in figures))
    rows = [[way, *(figures.get(name, {}).get("mean") for name in names)] for way, figures in ways.items()]
    print(columns(["", *names], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
