"""The peers' loops compute what ours does, or the comparison of their cost would mean nothing."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.tuning import DRAWS, WAYS, Peak, late, made, measure
from src.models.rfft.steps import Window
from src.models.rfnet.reward import RFNetReward
from tests.diffusion import tiny
from tests.rewards import tiny as nets


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> RFNetReward:
    return RFNetReward(**nets.rfnet(tmp_path_factory.mktemp("reward")))


def gradient(way: str, reward: RFNetReward, trainable: str = "unet") -> tuple[float, torch.Tensor]:
    generator = tiny.generator(num_steps=8, guidance_scale=2.0)
    _, loss, _ = made(way, generator, reward, trainable)
    value = loss(tiny.ads(2) | {"title": ["an oak chair", "a lamp"]}, 0)
    value.backward()
    weights = getattr(generator, trainable).parameters()
    return float(value.detach()), torch.cat([w.grad.flatten() for w in weights if w.grad is not None])


@pytest.mark.parametrize("trainable", ["unet", "controlnet"])
def test_a_plain_reading_of_refl_gives_our_loss_and_gradient(trainable: str, reward: RFNetReward) -> None:
    ours, slope = gradient("rfft", reward, trainable)
    for way in ("refl", "refl_once"):
        value, plain = gradient(way, reward, trainable)
        assert value == pytest.approx(ours, abs=1e-4)
        torch.testing.assert_close(plain, slope, atol=1e-4 * float(slope.abs().max()), rtol=1e-2)


def test_the_whole_chain_has_another_gradient(reward: RFNetReward) -> None:
    slopes = [gradient(way, reward)[1] for way in ("rfft", "alignprop")]
    assert not torch.allclose(*slopes, rtol=0.1)


def test_late_steps_lie_in_the_last_quarter() -> None:
    assert late(40, 1) == [Window(35, 36)]
    assert [window.start for window in late(40, 3)] == [31, 35, 38]


def test_the_several_draws_are_the_defaults() -> None:
    steps = OmegaConf.load("conf/steps/late_random.yaml")
    assert isinstance(steps, DictConfig)
    assert steps.draws == DRAWS


@pytest.mark.parametrize("way", WAYS)
def test_seconds_are_the_median_per_gradient_sample_without_the_first_run(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs 50 s in the first run, which warms up, then 6, 24 and 12 s; a batch is 2 images."""
    clock = iter([0, 50, 50, 56, 56, 80, 80, 92])
    monkeypatch.setattr("benchmarks.tuning.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    tiny.generator().save(tmp_path / "generator")
    words = {
        "generator": str(tmp_path / "generator"), "size": "null", "checkpoint": nets.rfnet(tmp_path)["checkpoint"],
        "trainable": "controlnet", "batch": "2", "steps": "8", "repeats": "3", "threads": "1", "device": "cpu",
        "precision": "float32",
    }  # fmt: skip
    found = measure(way, words)
    assert found["seconds"] == 12 / 2 / (DRAWS if way == "rfft_draws" else 1)


def test_the_peak_of_memory_is_what_was_held_and_released_in_between() -> None:
    with Peak(torch.device("cpu")) as peak:
        held = torch.ones(2**24)  # 64 MiB
        time.sleep(0.2)
        del held
    assert 60 < peak.mib < 100
    assert peak.all > peak.mib + 100  # torch and the test themselves
