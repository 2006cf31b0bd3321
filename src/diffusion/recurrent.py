"""Recurrent generation (Du et al., ECCV 2024): generates until the reward accepts the image.

The batch stays full: a product whose image is accepted, or that has no attempts left, frees its slot for the next one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from src.data.batch import Record, collate, to_float
from src.diffusion.generator import Generator
from src.rewards.base import Reward


@dataclass
class Job:
    """A product in progress: its record (key, prompt, product, fields of the reward) and the value of each attempt."""

    record: Record
    values: list[float] = field(default_factory=list)
    best: Tensor | None = None  # the image with the highest value, (3, height, width) in [0, 1]

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
    """Yields each product in order of completion, and whether its image was accepted.

    An image is accepted if its value is at least `threshold`; otherwise the best of all attempts is returned. The noise
    of attempt n depends on the product's key and `attempt_seed(seed, n)` only.
    """
    if attempts < 1 or batch_size < 1:
        raise ValueError(f"attempts={attempts} and batch_size={batch_size} must be at least 1.")
    waiting, slots = iter(records), []
    while True:
        slots += [Job(record) for _, record in zip(range(batch_size - len(slots)), waiting, strict=False)]
        if not slots:
            return
        batch = move_data_to_device(to_float(collate([job.record for job in slots])), device)
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
    """The seed of an attempt, counted from 0; different seeds share no attempt seed."""
    return (seed << 32) + attempt
