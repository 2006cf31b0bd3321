"""Transforms that make or change fields of a batch on the device by frozen networks, configured in the data YAML."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from src.data.batch import Batch


class Transform(nn.Module, ABC):
    """Makes the fields `makes` of a batch from its `fields` and `key`."""

    fields: frozenset[str]
    makes: frozenset[str]

    def prepare(self, makes: frozenset[str]) -> None:
        """Loads what it needs to make these fields. Raises ValueError if that is not there."""

    @abstractmethod
    def forward(self, batch: Batch, makes: frozenset[str], seed: int) -> dict[str, Tensor]:
        """The fields `makes` of a batch whose images are float, (batch, channels, height, width) in [0, 1]."""
