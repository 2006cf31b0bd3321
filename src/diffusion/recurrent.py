"""Recurrent generation (Du et al., ECCV 2024): generate until the reward accepts the image.

The batch stays full: a product whose image is accepted, or whose attempts are spent, frees its slot for the next.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from src.data.batch import Batch, Record, collate, to_float
from src.diffusion.generator import Generator
from src.rewards.base import Reward


@dataclass
class Job:
    """A product in progress: its record (key, prompt, product, the reward's fields) and the value of each attempt."""

    record: Record
    values: list[float] = field(default_factory=list)
    best: Tensor | None = None  # the image of the highest value, (3, height, width) in [0, 1]

    @property
    def attempts(self) -> int:
        return len(self.values)


def recurrent(
    generator: Generator,
    reward: Reward,
    records: Iterable[Record],
    threshold: float,
    attempts: int,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Job, bool]]:
    """Each product with whether its image was accepted, in order of completion.

    An image is accepted if its value is at least `threshold`; the noise of attempt n depends on the product's key
    and `attempt_seed(seed, n)` alone. A product whose attempts are spent has its best image.
    """
    if attempts < 1 or batch_size < 1:
        raise ValueError(f"attempts={attempts} and batch_size={batch_size} must be at least 1.")
    waiting, slots = iter(records), []
    while True:
        slots += [Job(record) for _, record in zip(range(batch_size - len(slots)), waiting, strict=False)]
        if not slots:
            return
        batch = moved(to_float(collate([job.record for job in slots])), device)
        with torch.no_grad():
            images = generator.sample(generator.encode(batch, [attempt_seed(seed, job.attempts) for job in slots]))
            values = reward(images, {name: batch[name] for name in reward.fields}).value.tolist()
        for job, image, value in zip(slots, images.cpu(), values, strict=True):
            if not job.values or value > max(job.values):
                job.best = image
            job.values.append(value)
        done = [job for job in slots if job.values[-1] >= threshold or job.attempts >= attempts]
        slots = [job for job in slots if not (job.values[-1] >= threshold or job.attempts >= attempts)]
        yield from ((job, job.values[-1] >= threshold) for job in done)


def attempt_seed(seed: int, attempt: int) -> int:
    """The generator's seed of an attempt, counted from 0; different seeds share none."""
    return (seed << 32) + attempt


def moved(batch: Batch, device: torch.device | str) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
