"""The weighted sum of rewards against the rewards themselves."""

from pathlib import Path

import pytest
import torch

from src.models.rahf.reward import RAHFReward
from src.models.rfnet.reward import RFNetReward
from src.rewards.mix import Mix
from tests.rewards.test_contract import inputs
from tests.rewards.tiny import RFNET, checkpoint, rahf, rfnet


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RFNetReward]:
    folder: Path = tmp_path_factory.mktemp("mix")
    paths = rfnet(folder)
    other = checkpoint(folder / "other", {**RFNET, "inputs": ["image"]}, seed=1)
    return {"a": RFNetReward(**paths), "b": RFNetReward(**{**paths, "checkpoint": other})}


def test_a_mix_is_the_weighted_sum(pair: dict[str, RFNetReward]) -> None:
    images, batch = inputs()
    a, b = (reward(images, batch) for reward in pair.values())
    score = Mix(pair, {"a": 2.0, "b": -0.5})(images, batch)
    torch.testing.assert_close(score.value, 2 * a.value - 0.5 * b.value)
    torch.testing.assert_close(Mix(pair)(images, batch).value, (a.value + b.value) / 2)
    torch.testing.assert_close(score.parts["b/value"], b.value)
    torch.testing.assert_close(score.parts["a/size_mismatch"], a.parts["size_mismatch"])


def test_it_has_the_heat_maps_of_each(pair: dict[str, RFNetReward], tmp_path: Path) -> None:
    images, batch = inputs()
    own = RAHFReward(**rahf(tmp_path))
    mix = Mix({"a": pair["a"], "b": own})
    assert mix.heat_maps == ("b/implausibility", "b/misalignment")
    maps = mix(images, batch).maps
    torch.testing.assert_close(maps["b/implausibility"], own(images, batch).maps["implausibility"])
    assert Mix(pair)(images, batch).maps == {}


def test_it_needs_what_each_needs(pair: dict[str, RFNetReward]) -> None:
    assert Mix(pair).fields == pair["a"].fields | pair["b"].fields == {"product", "title"}
    assert Mix({"b": pair["b"]}).fields == frozenset()


def test_refuses_by_name(pair: dict[str, RFNetReward]) -> None:
    with pytest.raises(ValueError, match="weights and rewards differ: b, c"):
        Mix(pair, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        Mix({})
