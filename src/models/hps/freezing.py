"""Tuning of the last layers of a CLIP of open_clip."""

from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn


def freeze_first(net: Any, image_layers: int | None, text_layers: int | None) -> None:
    """Freezes all but the last layers of both towers, and what follows these: norm, pooling and projection.

    A layer is a block of a transformer; in image towers of timm, one of its groups. 0: the whole tower is frozen;
    None: nothing of it. logit_scale stays trainable. Raises ValueError if a tower cannot be frozen in part.
    """
    if image_layers is not None:
        if image_layers and isinstance(net.visual, ModifiedResNet):
            raise ValueError(
                f"image_layers={image_layers}: a ResNet of open_clip is frozen as a whole (0) or not (null)."
            )
        projection = isinstance(net.visual, VisionTransformer)  # in open_clip a group of its own
        net.lock_image_tower(unlocked_groups=image_layers + projection if image_layers else 0)
    if text_layers is not None:
        projection = not isinstance(getattr(net, "text", None), HFTextEncoder)
        net.lock_text_tower(unlocked_layers=text_layers + projection if text_layers else 0)


def keep_frozen_in_eval_mode(net: nn.Module) -> None:
    """Eval mode of the modules whose weights are all frozen: their batch statistics and dropout stay off."""
    for module in net.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()
