"""Where an image does not follow its prompt, by the gradient of a CLIP's cosine: counterfactual Grad-CAM.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, arXiv
1610.02391, equations 1 and 2 with the negative gradient of "Counterfactual Explanations".
"""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from src.rewards.clip_net import Clip, distinct


def counterfactual_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Maps (batch, places) in [0, 1] of feature maps and the gradients of a score, both (batch, channels, places).

    relu(sum_k a_k A_k), a_k the mean over the places of -d score / d A_k, divided by its maximum. High: what lowers the
    score. All 0 where nothing lowers it.
    """
    weights = -gradients.mean(dim=2, keepdim=True)
    maps = (weights * features).sum(dim=1).relu()
    peak = maps.amax(dim=1, keepdim=True)
    return maps / torch.where(peak > 0, peak, 1.0)


def misalignment_map(clip: Clip, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Maps (batch, grid, grid) in [0, 1] of images (batch, 3, height, width) under their prompts; high: misaligned.

    `counterfactual_cam` of the cosine of image and prompt at `feature_layer`; the class token of a ViT is left out. The
    map covers what the CLIP sees of the image. Gradients are in float32 and reach no weight; works in inference mode.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    different, place = distinct(prompts)
    # In inference mode nothing has a gradient, and autocast would find weights there that were cast without one.
    with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
        with torch.no_grad():
            texts = clip.text_features(different)[place]
        hook = feature_layer(clip).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                cosines = (clip.image_features(images.detach().clone()) * texts).sum(dim=-1)
                (gradients,) = torch.autograd.grad(cosines.sum(), kept)
        finally:
            hook.remove()
        maps = counterfactual_cam(*(_places(clip, values.detach()).float() for values in (kept[0], gradients)))
        side = round(maps.shape[1] ** 0.5)
        return maps.unflatten(1, (side, side))


def feature_layer(clip: Clip) -> Any:
    """The layer with the last feature map that the cosine depends on.

    That of a ResNet is layer4, that of a ViT the first norm of the last block: after it only the class token counts.
    Raises ValueError for other image networks.
    """
    visual = clip.net.visual
    if isinstance(visual, ModifiedResNet):
        return visual.layer4
    if isinstance(visual, VisionTransformer):
        blocks: Any = visual.transformer.resblocks
        return blocks[-1].ln_1
    raise ValueError(
        f"no gradient map of CLIP {clip.name!r}: its image network is a {type(visual).__name__}, not a "
        "ModifiedResNet or VisionTransformer of open_clip."
    )


def _places(clip: Clip, values: Tensor) -> Tensor:
    """(batch, channels, places) of a feature map, or of the tokens of a ViT without the class token."""
    if values.ndim == 4:
        return values.flatten(2)
    tokens = values if clip.net.visual.transformer.batch_first else values.transpose(0, 1)
    return tokens[:, 1:].transpose(1, 2)
