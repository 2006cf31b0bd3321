"""How often a reward makes the CPU wait for a GPU, counted on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from src.data.batch import Batch
from src.rewards.base import Reward, Score


class Brightness(Reward):
    """The mean of the image."""

    fields = frozenset()

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(images.mean(dim=(1, 2, 3)), {})


class Waits(TorchFunctionMode):
    """Counts the calls that read values of a tensor."""

    number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__bool__, Tensor.__float__)
        return func(*args, **(kwargs or {}))


def test_a_reward_waits_once_for_the_range_of_its_images() -> None:
    with Waits() as waits:
        assert Brightness()(torch.full((2, 3, 4, 4), 0.5), {}).value.shape == (2,)
    assert waits.number == 1
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], these are in \[-1, 1\]"):
        Brightness()(torch.linspace(-1, 1, 48).view(1, 3, 4, 4), {})
