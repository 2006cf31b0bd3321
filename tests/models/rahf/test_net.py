"""RAHF's network and heads: shapes, padding, gradients, and the sizes of the paper."""

from dataclasses import replace

import pytest
import torch

from src.build import build
from src.config import compose
from src.models.layers import ImageEncoderSettings
from src.models.rahf.heads import HeatMapHead, ScoreHead
from src.models.rahf.net import RAHF, HeadSettings, PromptModelSettings

IMAGES = ImageEncoderSettings(
    "vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 16, "depth": 1, "num_heads": 2}, size=64
)
PROMPT = PromptModelSettings(
    "src/data/showroom/t5",
    {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1},
    max_tokens=24,
)
HEADS = HeadSettings((8,), (8, 8), (8, 8), (8,))
PROMPTS = ["a red chair next to a plant", "oak table"]


def net(variant: str = "multi_head", **changes: object) -> RAHF:
    torch.manual_seed(0)
    return RAHF(variant, IMAGES, replace(PROMPT, **changes), HEADS).eval()


@pytest.mark.parametrize(("variant", "heads"), [("multi_head", (2, 4)), ("augmented_prompt", (1, 1))])
def test_outputs_are_two_maps_and_four_scores_by_seven_or_three_heads(variant, heads):
    model = net(variant)
    maps, scores, fused = model(torch.rand(2, 3, 48, 80), PROMPTS)
    assert maps.shape == (2, 2, 16, 16)  # 4 x 4 tokens, two deconvolutions
    assert scores.shape == (2, 4)
    assert model.misaligned(fused, PROMPTS).shape == (2, 7)
    assert (len(model.map_heads), len(model.score_heads)) == heads
    assert ((maps.sigmoid() > 0.01) & (maps.sigmoid() < 0.2)).all(), "maps begin near 0"


@pytest.mark.parametrize("variant", ["multi_head", "augmented_prompt"])
@pytest.mark.parametrize("memory", ["prompt", "all"])
def test_a_row_does_not_depend_on_the_prompts_that_pad_it(variant, memory):
    model, images = net(variant, memory=memory), torch.rand(2, 3, 64, 64)
    maps, scores, fused = model(images, PROMPTS)
    alone = model(images[1:], PROMPTS[1:])
    torch.testing.assert_close(alone[0], maps[1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone[1], scores[1:], atol=1e-5, rtol=1e-4)
    words = model.misaligned(fused, PROMPTS)
    torch.testing.assert_close(model.misaligned(alone[2], PROMPTS[1:]), words[1:, :2], atol=1e-5, rtol=1e-4)
    aligned = torch.tensor([[1] * 7, [0, 1] + [-100] * 5])
    targets = [model.prompts.targets(PROMPTS[n:], aligned[n:], ["a", "b"][n:]) for n in (0, 1)]
    both, one = model.words_loss(fused, targets[0]), model.words_loss(alone[2], targets[1])
    lengths = targets[0].mask.sum(dim=1)
    first = model.words_loss(model(images[:1], PROMPTS[:1])[2], model.prompts.targets(PROMPTS[:1], aligned[:1], ["a"]))
    torch.testing.assert_close(both * lengths.sum(), first * lengths[0] + one * lengths[1], atol=1e-4, rtol=1e-4)


def test_the_prompt_changes_maps_and_scores_and_the_image_changes_words():
    model, images = net(), torch.rand(2, 3, 64, 64)
    maps, scores, fused = model(images[[0, 0]], PROMPTS)
    assert (maps[0] - maps[1]).abs().max() > 1e-6
    assert (scores[0] - scores[1]).abs().max() > 1e-6
    words = model.misaligned(fused, PROMPTS)
    assert (model.misaligned(model(images[[1, 1]], PROMPTS)[2], PROMPTS) - words).abs().nan_to_num().max() > 1e-6


def test_with_memory_of_the_prompt_the_decoder_attends_to_words_only():
    assert [net(memory=m).fuse(torch.rand(1, 16, 16), PROMPTS[:1]).memory.shape[1] for m in ("prompt", "all")] == [
        8,
        24,
    ]


def test_every_weight_has_a_gradient_except_tied_ones():
    model = net("augmented_prompt")
    maps, scores, fused = model(torch.rand(2, 3, 64, 64), PROMPTS)
    aligned = torch.tensor([[1] * 7, [0, 1] + [-100] * 5])
    loss = maps.sum() + scores.sum() + model.words_loss(fused, model.prompts.targets(PROMPTS, aligned, ["a", "b"]))
    loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_heads_of_the_paper():
    with torch.device("meta"):
        maps = HeatMapHead(768, (768, 384), (768, 384, 384, 192))(torch.rand(1, 768, 14, 14))
        scores = ScoreHead(768, 14, (768, 384, 128, 64), (2048, 1024))(torch.rand(1, 768, 14, 14))
    assert maps.shape == (1, 1, 224, 224)
    assert scores.shape == (1, 1)


def test_the_experiment_of_the_paper_uses_the_whole_vit_at_full_resolution():
    config = compose("fit", [
        "experiment=rahf_paper", "data.source.folder=nowhere",
        "model.image_encoder.pretrained=false", "model.image_encoder.name=vit_base_patch16_384",
        "model.image_encoder.options={embed_dim: 16, depth: 3, num_heads: 2}",
        "model.prompt_model.pretrained=false", "model.prompt_model.name=src/data/showroom/t5",
        "model.heads={map_convs: [8], map_deconvs: [8, 8, 8, 8], score_convs: [8, 8, 8, 8, 8, 8]}",
    ])  # fmt: skip
    model = build(config.model).net.eval()
    assert len(model.encoder.net.model.blocks) == 3
    assert model.encoder.mean.flatten().tolist() == model.encoder.std.flatten().tolist() == [0.5] * 3
    with torch.no_grad():
        maps, scores, _ = model(torch.rand(1, 3, 512, 512), PROMPTS[:1])
    assert maps.shape == (1, 2, 384, 384)
    assert scores.shape == (1, 4)
    assert config.trainer.max_steps == -1
    assert config.model.loss_weights == {"heatmaps": 1.0, "scores": 1.0, "words": 1.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "src/data/showroom/text"}, "is a bert, not a t5"),
        ({"options": {"d_modell": 16}}, "has no d_modell"),
        ({"name": "/nowhere/t5"}, "'/nowhere/t5' cannot be loaded"),
        ({"memory": "image"}, "memory=image: choose prompt or all"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        net(**changes)
    with pytest.raises(ValueError, match="variant=both: choose multi_head or augmented_prompt"):
        net("both")


def test_more_score_convolutions_than_the_grid_has_cells_are_refused():
    with pytest.raises(ValueError, match="4 convolutions need a grid of 5, not 4"):
        ScoreHead(8, 4, (8, 8, 8, 8), ())
