"""Random numbers from a seed and a key, so that an image does not depend on its batch or order."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def keyed_noise(seed: int | Sequence[int], keys: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (keys, *shape) on the CPU; each row depends on its seed and key only."""
    seeds = [seed] * len(keys) if isinstance(seed, int) else seed
    pairs = zip(seeds, keys, strict=True)
    return torch.stack([torch.randn(*shape, generator=seeded_generator(*pair)) for pair in pairs])


def seeded_generator(seed: int, key: str) -> torch.Generator:
    """A CPU random generator that depends on (seed, key) only."""
    number = int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(number)
