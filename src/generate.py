"""Paints ads by recurrent generation: `python -m src.generate products=DIR prompts=FILE out=ADS reward=rfnet`.

`out` gets <key>.png and a line in manifest.jsonl for each product: key, accepted, attempts, value (of the picture kept,
the best), values (of all attempts), seed (of the picture kept), prompt, order (a hash of product, prompt and title).
After a kill the same command goes on: what the manifest has is done; a key that stands for another order by now is
refused. A product that cannot be painted is told by name, in skipped.jsonl too, and the rest goes on. At the end, in
summary.json too: the share accepted by attempt, attempts and UNet calls per accepted picture.
Exit code 0: every product has a picture; 1: some, or all, could not be painted; 2: the command cannot be run.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from src.build import build
from src.config import plain
from src.data.batch import Record
from src.data.product_prompts import ProductError, ProductPrompt, placed, read_product_prompts
from src.diffusion.generator import Generator
from src.diffusion.recurrent import Job, attempt_seed, recurrent
from src.rewards.base import Reward
from src.runtime.checkpoint import fingerprint
from src.runtime.command import command
from src.runtime.device import PRECISIONS, autocast, torch_device
from src.runtime.files import atomic, write_json

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: in names and JSON of broken text
ROW = ("key", "accepted", "attempts", "value", "values", "seed", "prompt", "order")  # of the manifest
FREE = ("batch_size", "resume", "device", "threads", "debug", "products", "prompts", "out")


class Manifest:
    """manifest.jsonl and the settings that its pictures were painted with.

    A torn last line is cut off, and so are lines whose pictures are gone. Raises ValueError if the folder has another
    run's pictures, or pictures of these `keys` that nobody told of, or `resume` is false and it has a manifest.
    """

    def __init__(self, out: Path, of: dict[str, Any], resume: bool, keys: Iterable[str]) -> None:
        self.out, self.file, settings = out, out / "manifest.jsonl", out / "settings.json"
        out.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if not resume and self.file.exists():
            raise ValueError(f"{out} has a manifest; resume=true goes on with it, out=FOLDER begins another.")
        if not settings.exists() and (foreign := [key for key in keys if (out / f"{key}.png").exists()]):
            raise ValueError(f"{out} has a {foreign[0]}.png that was not painted here; choose another out.")
        if self.file.exists():
            known = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
            if changed := sorted(name for name in known | of if known.get(name) != of.get(name)):
                raise ValueError(f"{out} holds pictures of another {', '.join(changed)}; choose another out.")
            whole, kept = self.file.read_bytes(), []
            for number, line in enumerate(whole.rpartition(b"\n")[0].splitlines(keepends=True), start=1):
                try:
                    row = json.loads(line)
                    row = {name: row[name] for name in ROW}
                except (ValueError, KeyError, TypeError):
                    raise ValueError(
                        f"{self.file}, line {number}: damaged; without that line its product is painted again."
                    ) from None
                if (out / f"{row['key']}.png").is_file():
                    self.rows.append(row)
                    kept.append(line.rstrip(b"\n") + b"\n")
            if b"".join(kept) != whole:
                with atomic(self.file) as part:
                    part.write_bytes(b"".join(kept))
        write_json(settings, of)

    def add(self, job: Job, accepted: bool, seed: int, stamp: str) -> None:
        """Writes the picture, then its line: a product with a line has its picture."""
        record, best = job.record, max(job.values)
        assert job.best is not None
        with atomic(self.out / f"{record['key']}.png") as part:
            to_pil_image(job.best.clamp(0, 1)).save(part, "PNG")
        row = {
            "key": record["key"], "accepted": accepted, "attempts": job.attempts, "value": best, "values": job.values,
            "seed": attempt_seed(seed, job.values.index(best)), "prompt": record["prompt"], "order": stamp,
        }  # fmt: skip
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows.append(row)

    def tell(self, bad: list[tuple[str, str]]) -> None:
        """Writes what could not be painted this time to skipped.jsonl: file, reason."""
        lines = [json.dumps({"file": name, "reason": reason}) + "\n" for name, reason in bad]
        (self.out / "skipped.jsonl").write_text("".join(lines), encoding="utf-8")


def records(
    wanted: list[ProductPrompt], reward: Reward, size: int, config: Any, bad: list[tuple[str, str]]
) -> Iterator[Record]:
    """What the generator and the reward need of each order; those that cannot be painted go to `bad`: name, reason."""
    for order in wanted:
        try:
            texts = {"name": order.key, "prompt": order.prompt, "title": order.title}
            if odd := [name for name, text in texts.items() if SURROGATE.search(text)]:
                raise ProductError(f"its {odd[0]} is no UTF-8 text")
            if not order.prompt:
                raise ProductError("no prompt")
            if "title" in reward.fields and not order.title:
                raise ProductError(f"no title, which {type(reward).__name__} needs")
            product = placed(order.file, size, config.scale, tuple(config.centre))
        except ProductError as error:
            name = order.file.name
            bad.append((repr(name) if SURROGATE.search(name) else name, str(error)))
            continue
        yield {"key": order.key, "prompt": order.prompt, "title": order.title, "product": product}


def generate(generator: Generator, reward: Reward, config: DictConfig) -> tuple[Manifest, list[tuple[str, str]]]:
    """The manifest and the products that could not be painted: file name, reason."""
    if foreign := sorted(reward.fields - {"product", "prompt", "title"}):
        raise ValueError(f"{type(reward).__name__} needs {', '.join(foreign)}, which a product folder does not have.")
    for name in ("attempts", "threshold", "scale", "batch_size"):
        if config[name] is None:
            raise ValueError(f"{name}=null: it takes a number.")
    device = torch_device(config.device)
    half = autocast(device, config.precision)
    size = config.size or generator.size
    if size % generator.cell:
        raise ValueError(f"size={size}: this generator needs multiples of {generator.cell} px.")
    if Path(config.out).resolve() == Path(config.products).resolve():
        raise ValueError(f"out={config.out} is the folder of the products: its pictures would replace them.")
    of = {name: value for name, value in plain(config).items() if name not in FREE}
    of |= {f"generator.{name}": value for name, value in generator.settings.items()}  # those of its folder among them
    scheduler = generator.scheduler.config
    of["generator.scheduler"] = {name: scheduler[name] for name in sorted(scheduler) if not name.startswith("_")}
    of |= {"generator's weights": fingerprint(generator), "reward's weights": fingerprint(reward)}
    wanted = read_product_prompts(config.products, config.prompts)
    if "title" in reward.fields and not any(order.title for order in wanted):
        raise ValueError(
            f"prompts={config.prompts}: {type(reward).__name__} needs titles; give a table of key,prompt,title."
        )
    by_key, bad = {order.key: order for order in wanted}, []
    manifest = Manifest(Path(config.out), of, config.resume, by_key)
    done = {row["key"]: row["order"] for row in manifest.rows}
    if other := [key for key, order in by_key.items() if key in done and done[key] != order.stamp]:
        raise ValueError(
            f"{manifest.out} has {', '.join(other[:5])} ({len(other)} in all) of another product, prompt or title: "
            f"choose another out, or take their lines out of {manifest.file.name}."
        )
    waiting = [order for order in wanted if order.key not in done]
    generator.to(device, PRECISIONS[config.precision])
    reward.to(device)
    asked = records(waiting, reward, size, config, bad)
    with half, tqdm(total=len(wanted), initial=len(done), unit="ad", disable=None) as bar:
        pairs = recurrent(
            generator, reward, asked, config.threshold, config.attempts, config.batch_size, config.seed, device
        )
        for job, accepted in pairs:
            manifest.add(job, accepted, config.seed, by_key[job.record["key"]].stamp)
            bar.update()
    manifest.tell(bad)
    return manifest, bad


def summary(rows: list[dict[str, Any]], num_steps: int) -> dict[str, Any]:
    """What came of the attempts.

    `available_rate`: share of the products accepted within 1, 2, ... attempts. What an accepted picture costs includes
    the attempts of products that were given up; None if no picture is accepted.
    """
    accepted = [row for row in rows if row["accepted"]]
    numbers = range(1, max((row["attempts"] for row in rows), default=0) + 1)
    each = sum(row["attempts"] for row in rows) / len(accepted) if accepted else None
    return {
        "products": len(rows),
        "accepted": len(accepted),
        "available_rate": [sum(row["attempts"] <= number for row in accepted) / len(rows) for number in numbers],
        "attempts_per_accepted": each,
        "unet_calls_per_accepted": each and each * num_steps,
    }


def lines(told: dict[str, Any]) -> list[str]:
    """A summary as lines to print."""
    found = [f"{told['accepted']} of {told['products']} accepted"]
    for number, rate in enumerate(told["available_rate"], start=1):
        found.append(f"  within {number} attempt{'s' if number > 1 else ''}: {rate:.1%}")
    if told["accepted"]:
        attempts, calls = told["attempts_per_accepted"], told["unet_calls_per_accepted"]
        found.append(f"{attempts:.2f} attempts and {calls:.0f} UNet calls for each accepted picture")
    return found


@command("generate")
def main(config: DictConfig) -> int:
    if config.generator is None or config.reward is None:
        raise ValueError("it needs a generator to paint and a reward to accept by: neither can be null.")
    generator, reward = build(config.generator).eval().requires_grad_(False), build(config.reward)
    manifest, bad = generate(generator, reward, config)
    told = summary(manifest.rows, generator.num_steps)
    write_json(manifest.out / "summary.json", told)
    print("\n".join(lines(told)))
    print(f"wrote {manifest.out}")
    for name, reason in bad:
        sys.stderr.write(f"{name}: {reason}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
