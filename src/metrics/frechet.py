"""The Frechet distance of two sets of image features; with the features of Inception v3 it is the FID.

Heusel et al. 2017, arXiv 1706.08500, equation 6. It compares sets, not images, and says nothing about a single one.
"""

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two normal distributions, at least 0; 0: they are equal.

    means: (width,), covariances: (width, width), symmetric and positive semi-definite, singular ones too; computed in
    float64. The trace of the root is the sum of the singular values of C^(1/2) C'^(1/2), which are real and at least
    0, so that neither an offset on the diagonal nor a complex root is needed.
    Raises ValueError for shapes that differ, and for values that are NaN or infinite.
    """
    given = [value.double() for value in (mean, covariance, other_mean, other_covariance)]
    width = mean.numel()
    for value, shape in zip(given, [(width,), (width, width)] * 2, strict=True):
        if value.shape != shape:
            raise ValueError(f"statistics are {tuple(value.shape)}, not {shape}.")
        if not value.isfinite().all():
            raise ValueError("statistics of features are NaN or infinite.")
    first, covariance, second, other = given
    root = torch.linalg.svdvals(_root(covariance) @ _root(other)).sum()
    distance = (first - second).square().sum() + covariance.trace() + other.trace() - 2 * root
    return max(0.0, distance.item())  # rounding


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (width,) and unbiased covariance (width, width) of features (images, width), in float64.

    Raises ValueError for fewer than two images.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are {tuple(features.shape)}; (images, width) of at least 2 images are needed.")
    features = features.double()
    centred = features - features.mean(dim=0)
    return features.mean(dim=0), centred.T @ centred / (len(features) - 1)


class FrechetDistance(Metric):
    """The Frechet distance between real and generated images, by features that a network gives for them.

    The sums are float64 and of fixed size, whatever the number of images, and are added over processes. With few images
    the distance is too large (Chong and Forsyth 2020, arXiv 1911.07023): compare values of equal numbers of images and
    of one network only. With no more images than features a covariance is singular, and `compute` warns.

    Args:
        width: of the features.
    """

    full_state_update = False
    higher_is_better = False
    numbers: Tensor  # (2,): real, generated
    sums: Tensor  # (2, width)
    products: Tensor  # (2, width, width): sums of outer products

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be at least 1.")
        self.width = width
        self.add_state("numbers", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features (images, width) of real or of generated images. Raises ValueError for NaN and infinity."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features are {tuple(features.shape)}, not (images, {self.width}).")
        if not features.isfinite().all():
            raise ValueError("features are NaN or infinite.")
        row, features = int(not real), features.double()
        self.numbers[row] += len(features)
        self.sums[row] += features.sum(dim=0)
        self.products[row] += features.T @ features

    def compute(self) -> Tensor:
        """The distance, float64 (). Raises ValueError with fewer than two real or two generated images."""
        numbers, found = self.numbers.tolist(), []
        for number, total, products, name in zip(numbers, self.sums, self.products, ("real", "generated"), strict=True):
            if number < 2:
                raise ValueError(f"{number} {name} images: at least 2 are needed.")
            mean = total / number
            found += [mean, (products - number * mean.outer(mean)) / (number - 1)]
        if (least := min(numbers)) <= self.width:
            warnings.warn(
                f"{least} images for {self.width} features: the covariance is singular and the Frechet distance far "
                "too large; compare it with distances of equally many images only.",
                stacklevel=2,
            )
        return torch.tensor(frechet_distance(*found), dtype=torch.float64)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix; negative eigenvalues are rounding and count as 0."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
