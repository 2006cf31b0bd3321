"""DPT (Ranftl et al. 2021), the loss that trains it (MiDaS, Ranftl et al. 2020) and least-squares alignment.

The net is transformers' `DPTForDepthEstimation`: images in, relative inverse depth (batch, height, width) out, larger
is nearer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation

# Weights that transformers makes but no forward pass uses; published checkpoints lack them.
UNUSED = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")


def new_dpt(config: dict[str, Any]) -> DPTForDepthEstimation:
    """A DPT with random weights, `config` holding arguments of `DPTConfig`; ValueError on a name that is none.

    transformers draws every weight with a deviation of 0.02, fit for widths near 1000 and fine tuning; through the many
    convolutions of a narrow neck the signal dies (1e-8 at the end). Neck and head start as PyTorch's layers do, with a
    positive last bias so that the final ReLU is open.
    """
    unknown = sorted(set(config) - set(DPTConfig().to_dict()))
    if unknown:
        raise ValueError(f"unknown DPT config {', '.join(unknown)}; see transformers.DPTConfig")
    net = DPTForDepthEstimation(DPTConfig(**config))
    for part in (net.neck, net.head):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.reset_parameters()
    last = [layer for layer in net.head.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.ones_(last.bias)  # pyright: ignore[reportArgumentType]
    return frozen_where_unused(net)


def pretrained_dpt(name: str) -> DPTForDepthEstimation:
    """The DPT of a hub id or folder in float32; ValueError if it lacks weights, for example those of the depth head."""
    loaded: Any = DPTForDepthEstimation.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    net, found = loaded
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(UNUSED))
    if missing:
        raise ValueError(f"{name} is no DPT for depth estimation: {len(missing)} weights missing, first {missing[0]}")
    return frozen_where_unused(net)


def frozen_where_unused(net: DPTForDepthEstimation) -> DPTForDepthEstimation:
    """`net` itself; weights that never get a gradient ask for none, which data-parallel training insists on."""
    for name, weight in net.named_parameters():
        if name.startswith(UNUSED):
            weight.requires_grad_(False)
    return net


def standardized(depth: Tensor) -> Tensor:
    """(d - median) / mean |d - median| of each image, all 0 where it is constant (Ranftl et al. 2020, eq. 5, 6)."""
    flat = depth.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    return (centred / centred.abs().mean(dim=1, keepdim=True).clamp_min(1e-6)).view_as(depth)


def gradient_difference(residual: Tensor, scales: int = 4) -> Tensor:
    """sum_k mean_i |dx R_i^k| + |dy R_i^k|, R^k the residual at every 2^k-th pixel, k < `scales`.

    `residual` is (..., height, width), the result a scalar. The mean counts all pixels of its scale, as the authors'
    code does. Ranftl et al. 2020, eq. 11.
    """
    total = residual.new_zeros(())
    for k in range(scales):
        level = residual[..., :: 2**k, :: 2**k]
        total = total + (level.diff(dim=-1).abs().sum() + level.diff(dim=-2).abs().sum()) / level.numel()
    return total


def depth_loss(prediction: Tensor, target: Tensor, gradient_weight: float = 0.5) -> Tensor:
    """1/2 mean |R| + `gradient_weight` * `gradient_difference(R)`, a scalar >= 0.

    R = standardized(prediction) - standardized(target). Both are inverse depth (batch, 1, height, width); neither a
    positive scale nor a shift of an image changes the loss. A constant prediction costs 1/2 plus the gradient term.
    Ranftl et al., "Towards Robust Monocular Depth Estimation: Mixing Datasets for Zero-shot Cross-dataset Transfer",
    TPAMI 2020, eq. 7, 11 and 12.
    """
    residual = standardized(prediction) - standardized(target)
    return residual.abs().mean() / 2 + gradient_weight * gradient_difference(residual)


def aligned(prediction: Tensor, target: Tensor) -> Tensor:
    """`prediction` scaled (>= 0) and shifted, each image by itself, to be nearest to `target` in least squares.

    A negative scale would call far near, so an inverted prediction, like a constant one, becomes the target's mean.
    """
    x, y = prediction.flatten(1), target.flatten(1)
    x, mean = x - x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    scale = (x * (y - mean)).mean(dim=1, keepdim=True) / x.square().mean(dim=1, keepdim=True).clamp_min(1e-12)
    return (x * scale.clamp_min(0) + mean).view_as(prediction)
