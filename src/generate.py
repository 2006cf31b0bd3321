"""Generates ads by recurrent generation: `python -m src.generate products=DIR prompts=FILE out=ADS reward=rfnet`.

`out` has <key>.png, the accepted or best image, and one line of manifest.jsonl for each product: key, accepted,
attempts, value and seed of the image, values of all attempts, prompt, unread (the words beyond what the text encoder
reads), and order (a hash of product, prompt and title).
images.csv lists the images with products (as placed, in products/), prompts and titles: a table for `src.score`,
`src.repair` and `src.select`. With `pool=true` the images of all attempts are kept, as <key>.0.png, <key>.1.png, ...
Failed products are listed in failed.csv. summary.json has the share accepted by attempt, and attempts and UNet calls
per accepted image. The same command resumes an interrupted run.
Exit code 0: every product has an image; 1: some products failed; 2: nothing can be generated.
"""

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from src.build import build
from src.config import plain
from src.data.batch import Record
from src.data.product_check import warnings_of
from src.data.product_prompts import ProductError, ProductPrompt, placed, read_product_prompts
from src.data.tables import write_table
from src.diffusion.generator import Generator
from src.diffusion.guidance import RewardGuidance
from src.diffusion.prompts import unread_words
from src.diffusion.recurrent import attempt_seed, recurrent
from src.rewards.base import Reward
from src.runtime.checkpoint import fingerprint
from src.runtime.command import command
from src.runtime.device import PRECISIONS, autocast, torch_device
from src.runtime.files import atomic, check_names, write_json
from src.runtime.progress import progress_bar
from src.runtime.run_output import FailedRow, RunOutput

PRODUCTS, TABLE, SUMMARY = "products", "images.csv", "summary.json"  # in the output folder
COLUMNS = ("key", "image", "product", "prompt", "title", "value")
FREE = ("batch_size", "resume", "device", "threads", "debug", "products", "prompts", "out")


def records(
    waiting: dict[int, ProductPrompt],
    generator: Generator,
    rewards: list[Reward],
    size: int,
    config: Any,
    output: RunOutput,
) -> Iterator[Record]:
    """The records of products, given by row; products that cannot be read, and refused prompts, become failed rows."""
    reader = reader_of_titles(rewards)
    for row, order in waiting.items():
        try:
            order.check()
            if reader and not order.title:
                raise ProductError(f"no title, which {reader} needs")
            if generator.long_prompts == "refuse" and (lost := unread_words(generator.tokenizer, order.prompt)):
                raise ProductError(f"the prompt is too long for the text encoder; not read: {' '.join(lost)}")
            product = placed(order.file, size, config.scale, tuple(config.centre))
        except ProductError as error:
            output.add([], [FailedRow(row, order.key, order.file.name, str(error))])
            continue
        yield {"key": order.key, "prompt": order.prompt, "title": order.title, "product": product}


def generate(
    generator: Generator, reward: Reward, config: DictConfig, guidance: RewardGuidance | None = None
) -> tuple[RunOutput, list[dict[str, Any]]]:
    """Generates the images; returns the output and the rows of the manifest."""
    rewards = list(dict.fromkeys([reward, guidance.reward] if guidance else [reward]))
    for used in rewards:
        if foreign := sorted(used.fields - {"product", "prompt", "title"}):
            raise ValueError(f"{type(used).__name__} needs {', '.join(foreign)}, which a product folder does not have.")
    for name in ("attempts", "scale", "batch_size"):
        if config[name] is None:
            raise ValueError(f"{name}=null: a number is needed.")
    threshold = least_value(reward, config.threshold)
    device, out = torch_device(config.device), Path(config.out)
    precision = autocast(device, config.precision)
    size = config.size or generator.size
    if size % generator.cell:
        raise ValueError(f"size={size} must be a multiple of {generator.cell} px for this generator.")
    if Path(config.products).resolve() in (out.resolve(), (out / PRODUCTS).resolve()):
        raise ValueError(f"out={out} is the folder of the products, or has it as products/: they would be overwritten.")
    settings = {name: value for name, value in plain(config).items() if name not in FREE} | {"threshold": threshold}
    settings |= {f"generator.{name}": value for name, value in generator.sampling.items()}  # of its folder too
    settings |= {"generator weights": fingerprint(generator), "reward weights": fingerprint(reward)}
    if guidance and guidance.reward is not reward:
        settings["guidance weights"] = fingerprint(guidance.reward)
    wanted = read_product_prompts(config.products, config.prompts)
    if (reader := reader_of_titles(rewards)) and not any(order.title for order in wanted):
        raise ValueError(f"prompts={config.prompts}: {reader} needs titles; give a table of key,prompt,title.")
    by_key = {order.key: order for order in wanted}
    images = {order.key: images_of(order.key, config.attempts if config.pool else 0) for order in wanted}
    check_names(out, {name: name for names in images.values() for name in names})
    own = [
        TABLE,
        SUMMARY,
        *(name for names in images.values() for name in names),
        *(f"{PRODUCTS}/{key}.png" for key in images),
    ]
    files = (out / name for name in own)
    output = RunOutput(out, settings, config.resume, [Path(config.prompts)], files)
    done = output.results(lambda row: all((out / name).is_file() for name in images.get(row["key"], ())))
    if other := [key for key, order in by_key.items() if key in done and done[key].get("order") != order.stamp]:
        raise ValueError(
            f"{out}: product, prompt or title of {', '.join(other[:5])} ({len(other)} in all) have changed; choose "
            "another out, or delete their images."
        )
    waiting = {row: order for row, order in enumerate(wanted, start=1) if order.key not in done}
    for told in warnings_of(order.file for order in waiting.values()):
        warnings.warn(f"products={config.products}: {told}", stacklevel=2)
    generator.to(device, PRECISIONS[config.precision])
    for used in rewards:
        used.to(device)
    cut = generator.long_prompts == "cut"
    asked = records(waiting, generator, rewards, size, config, output)
    with precision, progress_bar(len(wanted), len(done)) as bar:
        for job, accepted in recurrent(
            generator, reward, asked, threshold, config.attempts, config.batch_size, config.seed, device,
            guidance, config.pool,
        ):  # fmt: skip
            key, best = job.record["key"], job.best
            for name, image in zip(images[key], (job.images[n] for n in sorted(job.images)), strict=True):
                write(out / name, image)
            write(out / PRODUCTS / f"{key}.png", torch.from_numpy(job.record["product"]))
            done[key] = {
                "key": key, "accepted": accepted, "attempts": job.attempts, "value": job.values[best],
                "values": job.values, "seed": attempt_seed(config.seed, best), "prompt": job.record["prompt"],
                "unread": unread_words(generator.tokenizer, job.record["prompt"]) if cut else [],
                "order": by_key[key].stamp,
            }  # fmt: skip
            output.add([done[key]], [])
            bar.update()
    made = [order for order in wanted if order.key in done]
    rows = [row for order in made for row in table_rows(order, done[order.key], images[order.key])]
    write_table(out / TABLE, rows, COLUMNS)
    return output, list(done.values())


def least_value(reward: Reward, threshold: Any) -> float:
    """The least value of an accepted image: `threshold`, or that of the reward if it is None.

    Raises ValueError if there is none, it is no number, or the reward never reaches it.
    """
    name, least = type(reward).__name__, reward.threshold if threshold is None else threshold
    if least is None:
        raise ValueError(f"threshold=null: {name} states none; a number is needed.")
    if type(least) not in (int, float) or math.isnan(least):
        raise ValueError(f"threshold={least}: a number is needed.")
    if least > reward.highest:
        raise ValueError(f"threshold={least}: {name} is never above {reward.highest}.")
    return least


def reader_of_titles(rewards: list[Reward]) -> str:
    """The name of the first reward that reads titles, "" if none does."""
    return next((type(reward).__name__ for reward in rewards if "title" in reward.fields), "")


def steering(config: DictConfig, reward: Reward) -> RewardGuidance | None:
    """The guidance; by `reward` itself, which is not loaded again, if it has the same configuration."""
    if config.guidance is None:
        return None
    same = plain(config.guidance)["reward"] == plain(config.reward)
    return build(config.guidance, **({"reward": reward} if same else {}))


def images_of(key: str, pool: int) -> list[str]:
    """The files of a product's images: of each of `pool` attempts, or of the best one."""
    return [f"{key}.{number}.png" for number in range(pool)] or [f"{key}.png"]


def write(file: Path, image: Tensor) -> None:
    """An image (channels, height, width), uint8 or in [0, 1], as PNG."""
    with atomic(file) as part:
        to_pil_image(image if image.dtype == torch.uint8 else image.clamp(0, 1)).save(part, "PNG")


def table_rows(order: ProductPrompt, row: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """The images `names` of a product as rows of a table that `src.score`, `src.repair` and `src.select` read."""
    values = row["values"] if len(names) > 1 else [row["value"]]
    for name, value in zip(names, values, strict=True):
        cells = name.removesuffix(".png"), name, f"{PRODUCTS}/{order.key}.png", order.prompt, order.title, value
        yield dict(zip(COLUMNS, cells, strict=True))


def summary(rows: list[dict[str, Any]], threshold: float, num_steps: int) -> dict[str, Any]:
    """Statistics of the attempts, whose values are the `values` of the rows.

    `available_rate`: share of the products with an accepted image within 1, 2, ... attempts. The cost per accepted
    image includes the attempts of products without an accepted image; a pool may have several images of a product.
    None if no image is accepted.
    """
    passed = [[value >= threshold for value in row["values"]] for row in rows]
    numbers = range(1, max(map(len, passed), default=0) + 1)
    images = sum(map(sum, passed))
    each = sum(map(len, passed)) / images if images else None
    return {
        "products": len(rows),
        "accepted": sum(map(any, passed)),
        "available_rate": [sum(any(row[:number]) for row in passed) / len(rows) for number in numbers],
        "attempts_per_accepted": each,
        "unet_calls_per_accepted": each and each * num_steps,
    }


def lines(stats: dict[str, Any]) -> list[str]:
    """A summary as lines to print."""
    found = [f"{stats['accepted']} of {stats['products']} accepted"]
    for number, rate in enumerate(stats["available_rate"], start=1):
        found.append(f"  within {number} attempt{'s' if number > 1 else ''}: {rate:.1%}")
    if stats["accepted"]:
        attempts, calls = stats["attempts_per_accepted"], stats["unet_calls_per_accepted"]
        found.append(f"{attempts:.2f} attempts and {calls:.0f} UNet calls per accepted image")
    return found


@command("generate", "out", "products", "prompts")
def main(config: DictConfig) -> int:
    generator, reward = build(config.generator).eval().requires_grad_(False), build(config.reward)
    output, rows = generate(generator, reward, config, steering(config, reward))
    stats = summary(rows, least_value(reward, config.threshold), generator.num_steps)
    write_json(output.out / SUMMARY, stats)
    print("\n".join(lines(stats)))
    return output.report(f"images in {output.out}")


if __name__ == "__main__":
    sys.exit(main())
