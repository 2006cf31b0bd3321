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
from src.diffusion.guidance import RewardGuidance
from src.rewards.base import Reward
from src.runtime.finite import require_finite


@dataclass
class Job:
    """A product in progress: its record (key, prompt, product, fields of the reward) and the value of each attempt."""

    record: Record
    values: list[float] = field(default_factory=list)
    images: dict[int, Tensor] = field(default_factory=dict)  # by attempt, (3, height, width) in [0, 1]

    @property
    def best(self) -> int:
        """The attempt with the highest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)

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
    guidance: RewardGuidance | None = None,
    keep_all: bool = False,
) -> Iterator[tuple[Job, bool]]:
    """Yields each product in order of completion, and whether its image was accepted.

    An image is accepted if its value is at least `threshold`; otherwise the best of all attempts is returned. The noise
    of attempt n depends on the product's key and `attempt_seed(seed, n)` only. `guidance` steers the sampling. With
    `keep_all` every attempt is made and its image kept. Raises ValueError that names images with non-finite
    pixels or rewards.
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
            conditions = generator.encode(batch, [attempt_seed(seed, job.attempts) for job in slots])
            images = generator.sample(conditions, guidance and guidance.steer(generator, conditions, batch))
            require_finite(images, "generated images", batch["key"])
            scores = reward(images, {name: batch[name] for name in reward.fields}).value
            values = require_finite(scores, "rewards", batch["key"]).tolist()
        for job, image, value in zip(slots, images.cpu(), values, strict=True):
            job.values.append(value)
            if keep_all:
                job.images[job.attempts - 1] = image
            elif job.best == job.attempts - 1:
                job.images = {job.best: image}
        accepted = [job.values[-1] >= threshold for job in slots]
        spent = [job.attempts >= attempts for job in slots]
        stops = spent if keep_all else [a or s for a, s in zip(accepted, spent, strict=True)]
        done = [(job, max(job.values) >= threshold) for job, stop in zip(slots, stops, strict=True) if stop]
        slots = [job for job, stop in zip(slots, stops, strict=True) if not stop]
        yield from done


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt, counted from 0; different seeds share no attempt seed."""
    return (seed << 32) + attempt
