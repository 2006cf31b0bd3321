"""Random numbers from a seed and a key, so that an image does not depend on its batch or order."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def keyed_noise(seed: int | Sequence[int], keys: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Standard normal (keys, *shape), on the CPU; a row is a function of (its seed, its key) alone."""
    seeds = [seed] * len(keys) if isinstance(seed, int) else seed
    return torch.stack(
        [torch.randn(*shape, generator=seeded_generator(*pair)) for pair in zip(seeds, keys, strict=True)]
    )


def seeded_generator(seed: int, key: str) -> torch.Generator:
    """Random numbers of the CPU that depend on (seed, key) alone."""
    number = int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(number)
