"""Computes missing depth and saliency maps of batches."""

from torch import Tensor, nn

from src.data.batch import Batch
from src.data.transform import Transform
from src.models.perception.system import load_perception


class Perceived(Transform):
    """Maps computed from the images by perception networks.

    `depth`, `saliency`: see `load_perception`; loaded when they are first needed. None: not computed.
    """

    fields = frozenset({"image"})

    def __init__(self, depth: str | None = None, saliency: str | None = None) -> None:
        super().__init__()
        self.places = {field: place for field, place in (("depth", depth), ("saliency", saliency)) if place}
        self.makes, self.nets = frozenset(self.places), nn.ModuleDict()

    def prepare(self, makes: frozenset[str]) -> None:
        for field in sorted(makes - self.nets.keys()):
            self.nets[field] = load_perception(self.places[field], field)

    def forward(self, batch: Batch, makes: frozenset[str], seed: int) -> dict[str, Tensor]:
        return {field: self.nets[field](batch["image"]) for field in sorted(makes)}
