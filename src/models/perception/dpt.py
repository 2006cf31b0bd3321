"""DPT (Ranftl et al. 2021), its training loss (MiDaS, Ranftl et al. 2020) and least-squares alignment.

The network is `DPTForDepthEstimation` of transformers; it predicts relative inverse depth, where larger is nearer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation

# Weights that no forward pass uses; published checkpoints do not contain them.
UNUSED = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")


def new_dpt(config: dict[str, Any]) -> DPTForDepthEstimation:
    """A DPT with random weights; `config`: arguments of `DPTConfig`. Raises ValueError for unknown ones.

    With the standard deviation of 0.02 in transformers the signal vanishes in a narrow neck (1e-8 at the end). Neck and
    head are initialized with PyTorch's defaults, and a positive last bias that keeps the final ReLU active.
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
    """The DPT of a hub id or folder in float32. Raises ValueError if weights are missing, for example the head."""
    loaded: Any = DPTForDepthEstimation.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    net, found = loaded
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(UNUSED))
    if missing:
        raise ValueError(f"{name} is not a DPT for depth estimation: {len(missing)} weights missing, e.g. {missing[0]}")
    return frozen_where_unused(net)


def frozen_where_unused(net: DPTForDepthEstimation) -> DPTForDepthEstimation:
    """Freezes weights that never get a gradient, as data-parallel training requires; returns `net`."""
    for name, weight in net.named_parameters():
        if name.startswith(UNUSED):
            weight.requires_grad_(False)
    return net


def standardized(depth: Tensor) -> Tensor:
    """(d - median) / mean |d - median| of each image; 0 for constant images (Ranftl et al. 2020, eq. 5, 6)."""
    flat = depth.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    return (centred / centred.abs().mean(dim=1, keepdim=True).clamp_min(1e-6)).view_as(depth)


def gradient_difference(residual: Tensor, scales: int = 4) -> Tensor:
    """sum_k mean_i |dx R_i^k| + |dy R_i^k| with the residual R^k at every 2^k-th pixel, k < `scales`; a scalar.

    `residual`: (..., height, width). Ranftl et al. 2020, eq. 11; the mean is over all pixels, as in the authors' code.
    """
    total = residual.new_zeros(())
    for k in range(scales):
        level = residual[..., :: 2**k, :: 2**k]
        total = total + (level.diff(dim=-1).abs().sum() + level.diff(dim=-2).abs().sum()) / level.numel()
    return total


def depth_loss(prediction: Tensor, target: Tensor, gradient_weight: float = 0.5) -> Tensor:
    """1/2 mean |R| + `gradient_weight` * `gradient_difference(R)`, a scalar >= 0.

    R = standardized(prediction) - standardized(target), both inverse depth (batch, 1, height, width). Scale and shift
    invariant. Ranftl et al., "Towards Robust Monocular Depth Estimation", TPAMI 2020, eq. 7, 11 and 12.
    """
    residual = standardized(prediction) - standardized(target)
    return residual.abs().mean() / 2 + gradient_weight * gradient_difference(residual)


def aligned(prediction: Tensor, target: Tensor) -> Tensor:
    """`prediction` with the scale (>= 0) and shift of each image that minimize the squared error to `target`."""
    x, y = prediction.flatten(1), target.flatten(1)
    x, mean = x - x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    scale = (x * (y - mean)).mean(dim=1, keepdim=True) / x.square().mean(dim=1, keepdim=True).clamp_min(1e-12)
    return (x * scale.clamp_min(0) + mean).view_as(prediction)
