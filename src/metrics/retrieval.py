"""How well images find their own texts among all texts."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

DEPTHS = (1, 10)


def retrieval_ranks(images: Tensor, texts: Tensor, numbers: Tensor) -> Tensor:
    """The rank from 1 of each image's own text among the different texts, by scalar product; ties count against it.

    images, texts: (rows, width), row by row of one pair. numbers: (rows,), of the text: equal texts, equal numbers.
    """
    different, place = numbers.unique(return_inverse=True)
    first = torch.empty_like(different).scatter_(0, place.flip(0), torch.arange(len(numbers)).to(place).flip(0))
    products = images @ texts[first].T  # (rows, texts)
    own = products.gather(1, place[:, None])
    return (products >= own).sum(dim=1)


class Retrieval(Metric):
    """retrieval_at_<k>: the share of images whose own text is among the k best, of all images and processes."""

    full_state_update = False
    images: list[Tensor]
    texts: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "texts", "numbers"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, images: Tensor, texts: Tensor, numbers: Tensor) -> None:
        """Adds pairs, as for `retrieval_ranks`."""
        self.images.append(images.float())
        self.texts.append(texts.float())
        self.numbers.append(numbers)

    def compute(self) -> dict[str, Tensor]:
        ranks = retrieval_ranks(dim_zero_cat(self.images), dim_zero_cat(self.texts), dim_zero_cat(self.numbers))
        return {f"retrieval_at_{depth}": (ranks <= depth).float().mean() for depth in DEPTHS}
