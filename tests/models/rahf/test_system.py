"""RAHF's training, metrics, checkpoint and reward, and the regressor baseline, on a world of two kinds of images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from src.build import build
from src.config import compose
from src.data.module import AdData
from src.data.splits import Source
from src.models.layers import ImageEncoderSettings
from src.models.rahf.reward import RAHFReward
from src.models.rahf.system import RAHFSystem
from src.runtime.checkpoint import ABOUT, load, save
from tests.data.records import Records
from tests.rewards.tiny import RAHF


class Walls(Source):
    """Red images are flawed in the upper left and have a bad score; a prompt that says blue is then misaligned."""

    classes = ("any",)
    fields = frozenset({"key", "image", "prompt", "heatmaps", "scores", "aligned_words"})

    def split(self, name: str) -> Records:
        rng = np.random.default_rng(len(name))
        return Records(self.record(f"{name}{row}", rng) for row in range(24))

    def record(self, key: str, rng: np.random.Generator) -> dict:
        red, says_red = rng.random() < 0.5, rng.random() < 0.5
        image = rng.integers(0, 60, (3, 32, 32)).astype(np.uint8)
        image[0 if red else 2] += 180
        maps = np.zeros((2, 32, 32), np.uint8)
        maps[0, :16, :16] = 255 * red
        maps[1, 16:, 16:] = 255 * (red != says_red)
        return {
            "key": key,
            "image": image,
            "prompt": f"a chair, {'red' if says_red else 'blue'} wall",
            "heatmaps": maps,
            "scores": np.array([0.2 if red else 0.9, float(red == says_red), 0.5 + 0.3 * red, 0.4], np.float32),
            "aligned_words": [1, 1, int(red == says_red), 1],
        }


@pytest.fixture(scope="module")
def trained() -> tuple[RAHFSystem, Mapping[str, float]]:
    L.seed_everything(0, verbose=False)
    system = build({**RAHF, "lr": 5e-3, "loss_weights": {"heatmaps": 5.0}})
    options: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=200, **options, enable_model_summary=False, limit_val_batches=0)
    data = AdData(Walls(), batch_size=8, num_workers=0)
    trainer.fit(system, data)
    (metrics,) = trainer.test(system, data, verbose=False)
    system.calibrate(data.batches("val", "cpu"))
    return system.eval(), metrics


def test_it_learns_maps_scores_and_words(trained):
    system, metrics = trained
    assert metrics["test/plausibility_plcc"] > 0.95
    assert metrics["test/alignment_plcc"] > 0.95, "which needs the prompt"
    assert metrics["test/implausibility_cc"] > 0.9
    assert metrics["test/misalignment_cc"] > 0.7, "which needs the prompt"
    assert metrics["test/word_f1"] > 0.9
    parts = metrics["test/mean_srcc"], metrics["test/word_f1"]
    maps = (metrics["test/implausibility_cc"] + metrics["test/misalignment_cc"]) / 2
    assert metrics["test/mean"] == pytest.approx((sum(parts) + maps) / 3, abs=1e-5)
    assert all(0.01 <= level <= 0.9 for level in system.thresholds.values())


def test_evaluation_prints_the_tables_of_the_paper(trained):
    system, metrics = trained
    text = system.tables({"rahf": metrics})
    lines = {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if line}
    assert lines["plausibility"][1:] == [f"{metrics[f'test/plausibility_{k}']:.4f}" for k in ("plcc", "srcc")]
    assert lines["misalignment"][3] == f"{metrics['test/misalignment_cc']:.4f}"
    assert lines["all words"][-1] == f"{metrics['test/word_f1']:.4f}"
    assert lines["rahf"][-1] == f"{metrics['test/mean']:.4f}"
    assert "fixation_threshold 0.0" in text


def test_models_are_compared_in_the_tables_where_they_predict_something(trained):
    system, metrics = trained
    other = {"test/plausibility_plcc": 0.5, "test/plausibility_srcc": 0.25, "test/mean": 0.25}
    text = system.tables({"rahf": metrics, "regressor": other})
    assert "plausibility  regressor  0.5000  0.2500" in text
    assert f"plausibility  rahf       {metrics['test/plausibility_plcc']:.4f}" in text
    assert "misalignment    regressor" not in text
    assert text.splitlines()[-1].split() == ["regressor", "0.2500"]


@pytest.mark.parametrize("variant", ["multi_head", "augmented_prompt"])
def test_a_checkpoint_holds_it_all_without_the_hub(trained, variant, tmp_path: Path, monkeypatch):
    config = {**RAHF, "variant": variant}
    system: Any = trained[0] if variant == "multi_head" else build(config)
    save(tmp_path, system.eval(), config, {}, dict.fromkeys(ABOUT, "a test"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other: Any = load(tmp_path)
    batch = next(iter(AdData(Walls(), batch_size=4, num_workers=0).batches("test", "cpu")))
    with torch.no_grad():
        first, second = system.predict(batch), other.predict(batch)
    for name in ("heat_maps", "scores", "misaligned"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert system.thresholds == other.thresholds


def test_non_finite_predictions_are_an_error_with_their_keys(trained):
    batch = next(iter(AdData(Walls(), batch_size=4, num_workers=0).batches("test", "cpu")))
    batch["image"][2, 0, 3, 3] = torch.nan
    with torch.no_grad(), pytest.raises(ValueError, match=rf"NaN or infinite for 1 of 4 images \({batch['key'][2]}\)"):
        trained[0].evaluation_step(batch, "test")


def test_evaluation_wants_one_label_for_each_word(trained):
    batch = next(iter(AdData(Walls(), batch_size=4, num_workers=0).batches("test", "cpu")))
    batch["prompt"][1] = "a chair"
    with torch.no_grad(), pytest.raises(ValueError, match=f"{batch['key'][1]}': 4 word labels for the 2 words of"):
        trained[0].evaluation_step(batch, "test")


def test_a_heat_map_without_any_mark_keeps_its_threshold(trained):
    system = trained[0]
    before = dict(system.thresholds)
    batch = next(iter(AdData(Walls(), batch_size=4, num_workers=0).batches("test", "cpu")))
    batch["heatmaps"][:, 1] = 0
    system.net.thresholds.fill_(0.77)
    system.calibrate([batch])
    assert system.thresholds["misalignment"] == pytest.approx(0.77)
    assert system.thresholds["implausibility"] != pytest.approx(0.77)
    system.net.thresholds.copy_(torch.tensor([before["implausibility"], before["misalignment"]]))


def test_the_report_is_drawn(trained, tmp_path: Path):
    system, _ = trained
    data = AdData(Walls(), batch_size=4, num_workers=0)
    (file,) = system.report(data, tmp_path)
    assert file.stat().st_size > 10_000


def test_the_reward_is_the_weighted_sum_of_its_parts(trained, tmp_path: Path):
    save(tmp_path, trained[0].eval(), RAHF, {}, dict.fromkeys(ABOUT, "a test"))
    reward = RAHFReward(tmp_path, {"plausibility": 2.0, "alignment": 0.5, "implausibility": 3.0})
    images, batch = torch.rand(3, 3, 40, 24), {"prompt": ["red wall", "blue wall", "a chair"]}
    score = reward(images, batch)
    parts = score.parts
    assert sorted(parts) == ["aesthetics", "alignment", "implausibility", "misalignment", "overall", "plausibility"]
    expected = 2 * parts["plausibility"] + 0.5 * parts["alignment"] - 3 * parts["implausibility"]
    torch.testing.assert_close(score.value, expected)
    assert reward.highest == 2.5
    red, blue = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    red[:, 0], blue[:, 2] = 0.8, 0.8
    values = [reward(image, {"prompt": ["a chair, blue wall"]}).value.item() for image in (red, blue)]
    assert values[1] > values[0]
    with pytest.raises(ValueError, match="weights: no beauty; choose from plausibility"):
        RAHFReward(tmp_path, {"beauty": 1.0})


def test_the_regressor_learns_scores_and_maps_but_not_what_needs_the_prompt():
    L.seed_everything(0, verbose=False)
    settings = ImageEncoderSettings("test_resnet", size=32, grid=4)
    node: dict[str, Any] = {"_target_": "src.models.rahf.regressor.Regressor", "predicts": ["scores", "heatmaps"]}
    system = build({**node, "width": 16, "deconvs": [8, 8], "lr": 1e-2, "flip": 0.0}, image_encoder=settings)
    options: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=100, **options, enable_model_summary=False, limit_val_batches=0)
    data = AdData(Walls(), batch_size=8, num_workers=0)
    trainer.fit(system, data)
    (metrics,) = trainer.test(system, data, verbose=False)
    assert metrics["test/plausibility_plcc"] > 0.9
    assert metrics["test/implausibility_cc"] > 0.8
    assert metrics["test/alignment_plcc"] < 0.6
    assert "test/word_f1" not in metrics


@pytest.mark.parametrize("name", ["rahf", "rahf_regressor"])
def test_the_yaml_fits_the_showroom(name):
    config = compose("fit", [f"model={name}"])
    system, data = build(config.model), build(config.data)
    data.require(system)
    assert sum(weight.numel() for weight in system.net.parameters()) * 2 < 8e6, "8 MB in float16"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decoding": "beam"}, "decoding=beam: choose constrained or free"),
        ({"loss_weights": {"maps": 1.0}}, "there is no loss maps; there are heatmaps, scores, words"),
    ],
)
def test_settings_that_do_not_exist_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        build({**RAHF, **changes})
