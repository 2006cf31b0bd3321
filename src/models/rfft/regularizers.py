"""Penalties on the distance between the noise predictions of the tuned generator and its reference.

Du et al., ECCV 2024, arXiv 2408.00418: F_total = F_AC + beta L. A pair is (text, uncond), the noise predicted with and
without the prompt, each (batch, channels, h, w); a = alpha_bar of the step; s = guidance scale. The right beta depends
on form and reduction: sums over the latents grow with the image size, means do not.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from src.build import loadable

Pair = tuple[Tensor, Tensor]
REDUCTIONS = ("mean", "sum")  # over the latents of an image


@loadable
class Regularizer(ABC):
    """A penalty with weight `beta`; it is not computed if beta is 0."""

    def __init__(self, beta: float) -> None:
        if beta < 0:
            raise ValueError(f"beta={beta} must be at least 0.")
        self.beta = beta

    @abstractmethod
    def __call__(self, tuned: Pair, reference: Pair, a: float, s: float) -> Tensor:
        """The penalty of each image, (batch,), float32: at least 0, and 0 if both pairs are equal."""


class NoRegularizer(Regularizer):
    """No penalty: F_total = F_AC (the paper's Fig. 5a)."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def __call__(self, tuned: Pair, reference: Pair, a: float, s: float) -> Tensor:
        return tuned[0].new_zeros(len(tuned[0]))


class KL(Regularizer):
    """L_KL, the divergence of Gaussians around x0-hat with the same variance sigma^2:

        |x0_tuned - x0_reference|^2 / (2 sigma^2) = (1 - a) / a |eps_tuned - eps_reference|^2 / (2 sigma^2).

    `branch`: "guided" uses eps after guidance, uncond + s (text - uncond); "text" uses the text branch only. The paper
    specifies neither sigma nor branch nor reduction.
    """

    def __init__(self, beta: float, sigma: float = 1.0, branch: str = "guided", reduction: str = "mean") -> None:
        super().__init__(beta)
        if sigma <= 0 or branch not in ("guided", "text") or reduction not in REDUCTIONS:
            raise ValueError(
                f"sigma={sigma}, branch={branch}, reduction={reduction}: sigma must be above 0, branch guided or text, "
                f"reduction {' or '.join(REDUCTIONS)}."
            )
        self.sigma, self.branch, self.reduction = sigma, branch, reduction

    def __call__(self, tuned: Pair, reference: Pair, a: float, s: float) -> Tensor:
        text, uncond = tuned[0] - reference[0], tuned[1] - reference[1]
        difference = text if self.branch == "text" else uncond + s * (text - uncond)
        return (1 - a) / a * _reduced(difference, self.reduction) / (2 * self.sigma**2)


class ConsistentCondition(Regularizer):
    """L_CC: preserves the text direction, text - uncond; a shift of both is not penalized.

    `form` "paper": the Euclidean norm of the difference of -(text - uncond) / sqrt(1 - a), the gradient of the implicit
    classifier; with reduction "mean" its root mean square. "authors": the mean (or sum) of squares of the difference of
    text - uncond, without the factor, as described by an author.
    """

    def __init__(self, beta: float, form: str = "paper", reduction: str = "sum") -> None:
        super().__init__(beta)
        if form not in ("paper", "authors") or reduction not in REDUCTIONS:
            raise ValueError(
                f"form={form}, reduction={reduction}: form must be paper or authors, "
                f"reduction {' or '.join(REDUCTIONS)}."
            )
        self.form, self.reduction = form, reduction

    def __call__(self, tuned: Pair, reference: Pair, a: float, s: float) -> Tensor:
        difference = (tuned[0] - tuned[1]) - (reference[0] - reference[1])
        if self.form == "authors":
            return _reduced(difference, self.reduction)
        norm = torch.linalg.vector_norm(difference.flatten(1), dim=1)  # its gradient at 0 is 0
        return norm / (1 - a) ** 0.5 / (difference[0].numel() ** 0.5 if self.reduction == "mean" else 1.0)


def _reduced(difference: Tensor, reduction: str) -> Tensor:
    squares = difference.square().flatten(1)
    return squares.mean(dim=1) if reduction == "mean" else squares.sum(dim=1)
