"""The CLIP baselines of RAHF: the gradient map against finite differences, cosines as scores, tuned heads, tables."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from src.build import build
from src.config import compose
from src.data.batch import HEAT_MAPS
from src.data.module import AdData
from src.metrics.correlation import plcc
from src.models.rahf.gradient_map import counterfactual_cam, feature_layer, misalignment_map
from src.rewards.clip_net import Clip, ClipSettings
from src.runtime.checkpoint import ABOUT, load, save
from tests.models.clip.test_system import COLOURS
from tests.models.clip.test_system import Walls as ColouredWalls
from tests.models.rahf.test_system import Walls
from tests.models.stepping import QUIET
from tests.rewards.tiny import clip_folder, on_clip

RESNET = {"image_size": 64, "width": 4, "head_width": 16, "layers": [1, 1, 1, 1]}
PROMPTS = ["a chair, red wall", "a chair, blue wall", "a chair, red wall"]


def feedback(folder: Path, **changes: Any) -> dict[str, Any]:
    node = on_clip(folder, "rahf.clip.ClipFeedback", **changes)
    node["backbone"]["resize"] = "squash"
    return node


def net(folder: Path, vision: dict[str, Any] | None) -> Clip:
    torch.manual_seed(0)
    return Clip(ClipSettings(clip_folder(folder, vision), resize="squash")).eval()


def test_the_map_by_hand():
    features = torch.tensor([[[2.0, 4.0, 6.0, 8.0], [1.0, 1.0, 4.0, 2.0]]]).repeat(2, 1, 1)
    gradients = torch.tensor([[[-1.0, 0.0, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], [[1.0] * 4, [0.0] * 4]])
    # weights 0.5 and -1: relu of 0, 1, -1, 2, over 2; nothing lowers the second score
    assert counterfactual_cam(features, gradients).tolist() == [[0.0, 0.5, 0.0, 1.0], [0.0] * 4]


@pytest.mark.parametrize("vision", [None, RESNET], ids=["vit", "resnet"])
def test_the_gradients_are_finite_differences_of_the_cosine(vision, tmp_path: Path):
    clip, images = net(tmp_path / "clip", vision), torch.rand(3, 3, 48, 80)
    found = misalignment_map(clip, images, PROMPTS)
    assert found.shape == ((3, 4, 4) if vision is None else (3, 2, 2))
    assert (found.amax(dim=(1, 2)) == 1).sum() >= 2, "a map may be empty, but not all"
    clip.double()
    layer, steps, kept = feature_layer(clip), torch.zeros(1), []

    def moved(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output)
        if vision is None:  # (class token and tokens, batch, channels); the class token stays
            return torch.cat([output[:1], output[1:] + steps])
        return output + steps[:, :, None, None]

    layer.register_forward_hook(moved)
    for image, prompt, expected in zip(images.double(), PROMPTS, found, strict=True):
        width = 32 if vision is None else 128
        steps = 1e-4 * torch.cat([torch.eye(width), -torch.eye(width)]).double()  # each channel, up and down
        with torch.no_grad():
            features = clip.net.encode_image(clip.preprocess(image.expand(len(steps), -1, -1, -1)))
            text = clip.net.encode_text(clip.tokenizer([prompt]))
        up, down = torch.cosine_similarity(features, text).chunk(2)
        fall = -(up - down) / 2e-4  # the sum of the gradients over the places: the scale does not matter
        seen = kept.pop()
        grid = seen[1:, 0].T.unflatten(1, (4, 4)) if vision is None else seen[0]
        values = torch.einsum("k,khw->hw", fall, grid).relu()
        torch.testing.assert_close(expected.double(), values / values.max().clamp_min(1e-9), atol=1e-3, rtol=1e-3)


def test_the_map_is_the_same_in_inference_mode_and_autocast_and_gives_weights_no_gradient(tmp_path: Path):
    clip, images = net(tmp_path / "clip", None), torch.rand(3, 3, 32, 32)
    expected = misalignment_map(clip, images, PROMPTS)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        clip(images, PROMPTS)  # leaves casts of the weights in autocast's cache
        assert torch.equal(misalignment_map(clip, images * 1, PROMPTS), expected)
    assert all(weight.grad is None for weight in clip.parameters())
    assert not expected.requires_grad
    single = torch.cat([misalignment_map(clip, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=1e-4)


def test_the_half_of_a_wall_that_has_not_the_colour_of_the_prompt_is_misaligned(tmp_path: Path):
    L.seed_everything(0, verbose=False)
    system, data = build(on_clip(tmp_path / "clip", "clip.system.ClipSystem", lr=3e-3)), AdData(ColouredWalls(), 8, 0)
    L.Trainer(**QUIET, max_steps=100, limit_val_batches=0).fit(system, data)
    system.eval()
    walls = torch.tensor(list(COLOURS.values())).view(4, 3, 1, 1).expand(4, 3, 32, 32) / 255
    for shift in (1, 2, 3):  # the right half has another color
        images = torch.cat([walls[..., :16], walls.roll(shift, dims=0)[..., 16:]], dim=3)
        maps = misalignment_map(system.clip, images, [f"a room, {name} wall" for name in COLOURS])
        left, right = maps.mean(dim=1).unflatten(1, (2, 2)).mean(dim=2).T
        assert (right > left + 0.3).all(), (shift, left, right)


def test_off_the_shelf_the_cosine_is_every_score(tmp_path: Path):
    torch.manual_seed(0)
    system = build(feedback(tmp_path / "config", predicts=["scores", "heatmaps"], tuned=False)).eval()
    data = AdData(Walls(), batch_size=8, num_workers=0)
    (metrics,) = L.Trainer(**QUIET).test(system, data, verbose=False)
    batches = list(data.batches("test"))
    with torch.no_grad():
        cosines = torch.cat([system.clip(batch["image"], batch["prompt"]) for batch in batches])
    scores = torch.cat([batch["scores"] for batch in batches])
    assert metrics["test/alignment_plcc"] == pytest.approx(plcc(cosines, scores[:, 1]).item(), abs=1e-5)
    assert metrics["test/plausibility_plcc"] == pytest.approx(plcc(cosines, scores[:, 0]).item(), abs=1e-5)
    assert metrics["test/mean"] == pytest.approx((metrics["test/mean_srcc"] + metrics["test/misalignment_cc"]) / 2)
    assert not any("implausibility" in name or "word" in name for name in metrics)
    (figure,) = system.report(data, tmp_path)
    assert figure.stat().st_size > 10_000
    with pytest.raises(ValueError, match="tuned=false: nothing is trained"):
        L.Trainer(**QUIET, max_steps=1).fit(system, data)
    other = {f"test/{name}_cc": 0.5 for name in HEAT_MAPS} | {"test/mean": 0.5}
    lines = [line.split() for line in system.tables({"clip": metrics, "rahf": other}).splitlines()]
    assert ["implausibility", "clip", *"-------"] in lines
    assert ["implausibility", "rahf", "-", "-", "0.5000", *"----"] in lines
    assert not any(line[1:2] == ["rahf"] for line in lines if line[:1] == ["plausibility"])
    assert not any(
        line[:1] == ["implausibility"] for line in map(str.split, system.tables({"clip": metrics}).split("\n"))
    )


def test_tuned_it_learns_the_scores_and_its_checkpoint_is_self_contained(tmp_path: Path, monkeypatch):
    L.seed_everything(0, verbose=False)
    node = feedback(tmp_path / "config", predicts=["scores", "heatmaps"], hidden=[32], lr=3e-3)
    system, data = build(node), AdData(Walls(), batch_size=8, num_workers=0)
    scale = system.clip.net.logit_scale.item()
    trainer = L.Trainer(**QUIET, max_steps=60, limit_val_batches=0)
    trainer.fit(system, data)
    (metrics,) = trainer.test(system, data, verbose=False)
    assert metrics["test/plausibility_plcc"] > 0.9
    assert metrics["test/alignment_plcc"] > 0.9, "which needs the prompt"
    assert system.clip.net.logit_scale.item() == scale
    save(tmp_path / "saved", system.eval(), node, {}, dict.fromkeys(ABOUT, "a test"))
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    (tmp_path / "config").rename(tmp_path / "gone")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other: Any = load(moved)
    batch = next(iter(data.batches("test")))
    first, second = system.predict(batch), other.predict(batch)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.heat_maps, second.heat_maps)
    assert first.heat_maps.shape == (8, 1, 4, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"predicts": ["words"]}, r"predicts=\['words'\]: choose from scores, heatmaps"),
        ({"predicts": ["heatmaps"]}, "with tuned=true, scores are learnt"),
        ({"predicts": ["heatmaps"], "tuned": False, "resize": "shortest"}, "resize=shortest: heat maps .* need squash"),
        ({"predicts": ["heatmaps"], "tuned": False, "timm": True}, "its image network is a TimmModel"),
    ],
)
def test_what_it_cannot_do_is_told(changes, told, tmp_path: Path):
    resize, timm = changes.pop("resize", "squash"), changes.pop("timm", False)
    node = feedback(tmp_path / "config", **changes)
    node["backbone"]["resize"] = resize
    if timm:
        vision = {"image_size": 32, "timm_model_name": "test_resnet", "timm_model_pretrained": False}
        node["backbone"]["name"] = clip_folder(tmp_path / "timm", {**vision, "timm_pool": "avg", "timm_proj": "linear"})
    with pytest.raises(ValueError, match=told):
        build(node)


def test_the_yamls_fit_the_showroom():
    tuned = compose("fit", ["model=rahf_clip", "model.backbone.weights=null"])
    system, data = build(tuned.model), build(tuned.data)
    data.require(system)
    assert sum(weight.numel() for weight in system.net.parameters()) * 2 < 8e6, "8 MB in float16"
    plain = compose("evaluate", ["baseline=clip", "baseline.backbone.weights=null"])
    data.require(build(plain.baseline))
    assert plain.baseline.backbone.name == tuned.model.backbone.name
