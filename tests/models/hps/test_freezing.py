"""Which weights are tuned."""

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from src.models.hps.freezing import freeze_first, keep_frozen_in_eval_mode
from src.rewards.clip_net import Clip, ClipSettings
from tests.rewards.tiny import clip_folder


def trained(net: Any, prefix: str) -> set[str]:
    """Parts of a tower with trainable weights: blocks by number, other parts by name."""
    names = [name.removeprefix(prefix) for name, weight in net.named_parameters() if weight.requires_grad]
    names = [name for name in names if prefix or not name.startswith("visual.")]
    return {name.split(".")[2] if "resblocks" in name else name.split(".")[0] for name in names}


def test_the_papers_layers_of_vit_l_14():
    with torch.device("meta"):
        config = open_clip.get_model_config("ViT-L-14-quickgelu")
        net = open_clip.CLIP(**config)  # pyright: ignore
    freeze_first(net, image_layers=10, text_layers=6)
    blocks = {str(n) for n in range(14, 24)}
    assert trained(net.visual, "") == blocks | {"ln_post", "proj"}
    text = {str(n) for n in range(6, 12)} | {"ln_final", "text_projection", "logit_scale"}
    assert trained(net, "") == text
    count = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    image = 10 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1024 * 768
    words = 6 * (12 * 768**2 + 13 * 768) + 2 * 768 + 768 * 768
    assert count == image + words + 1


@pytest.mark.parametrize(
    ("layers", "blocks"), [(None, {"conv1", "ln_pre", "0", "1", "2", "ln_post", "proj"}), (0, set()),
                           (1, {"2", "ln_post", "proj"}), (2, {"1", "2", "ln_post", "proj"})],
)  # fmt: skip
def test_counts_of_a_tower(tmp_path, layers, blocks):
    net = Clip(ClipSettings(clip_folder(tmp_path / "clip"))).net
    freeze_first(net, layers, None)
    assert trained(net.visual, "") - {"class_embedding", "positional_embedding"} == blocks
    assert all(weight.requires_grad for name, weight in net.named_parameters() if not name.startswith("visual."))


def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    vision = {"timm_model_name": "test_resnet", "image_size": 32}
    net = Clip(ClipSettings(clip_folder(tmp_path / "clip", vision))).net
    freeze_first(net, 1, 0)
    net.train()
    keep_frozen_in_eval_mode(net)
    norms = [module for module in net.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    assert 0 < sum(norm.training for norm in norms) < len(norms)
    assert all(norm.training == norm.weight.requires_grad for norm in norms)
    assert not net.transformer.training


def test_a_resnet_of_open_clip_is_frozen_as_a_whole():
    net = Clip(ClipSettings("src/data/showroom/clip")).net
    with pytest.raises(ValueError, match="image_layers=2: a ResNet of open_clip is frozen as a whole"):
        freeze_first(net, 2, None)
    freeze_first(net, 0, 0)
    assert {name for name, weight in net.named_parameters() if weight.requires_grad} == {"logit_scale"}
