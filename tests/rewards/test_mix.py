"""The weighted sum of rewards against the rewards themselves."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.batch import Batch
from src.models.rahf.reward import RAHFReward
from src.models.rfnet.reward import RFNetReward
from src.rewards.base import Reward, Score
from src.rewards.mix import Mix
from src.runtime.checkpoint import fingerprint
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


class Row(Reward):
    """A reward with the values of a list, one for each row."""

    fields = frozenset()

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def score(self, images: torch.Tensor, batch: Batch) -> Score:
        return Score(images.mean(dim=(1, 2, 3)) * 0 + self.values[: len(images)], {})


WIDE, NARROW = [0.0, 0.0, 1.0, 1.0], [0.25, 0.30, 0.25, 0.30]


def mixed(**options: Any) -> list[float]:
    mix = Mix({"a": Row(WIDE), "b": Row(NARROW)}, {"a": 0.5, "b": 0.5}, **options)
    score = mix(torch.rand(4, 3, 8, 8), {})
    assert score.parts["a/value"].tolist() == WIDE, "the parts are as the rewards give them"
    return score.value.tolist()


def test_without_standardizing_the_wide_reward_decides() -> None:
    assert mixed() == pytest.approx([0.125, 0.15, 0.625, 0.65])


def test_standardized_parts_have_equal_say(tmp_path: Path) -> None:
    assert mixed(standardize={"b": [0.275, 0.025], "a": [0.5, 0.5]}) == pytest.approx([-1, 0, 0, 1], abs=1e-5)
    lines = [f"ad{row},{a},{b}" for row, (a, b) in enumerate(zip(WIDE, NARROW, strict=True))]
    (tmp_path / "scores.csv").write_text("\n".join(["key,a/value,b/value", *lines]))
    assert mixed(standardize=str(tmp_path / "scores.csv")) == pytest.approx([-1, 0, 0, 1], abs=1e-5)
    one, other = (Mix({"a": Row(WIDE)}, standardize={"a": moments}) for moments in ([0.5, 0.5], [0.5, 0.25]))
    assert fingerprint(one) != fingerprint(other), "resuming notices other moments"
    assert one.highest == math.inf


def test_moments_that_do_not_do_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    cases = {
        "key,a/value": "b/value is missing",
        "key,a/value,b/value": "the table has no rows",
        "key,a/value,b/value\nx,1": "line 2: ",
        "key,a/value,b/value\nx,1,2\ny,1,3": "the values of a have no positive",
    }
    for text, told in cases.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=told):
            mixed(standardize=table)
    with pytest.raises(ValueError, match="standardize and rewards differ: b, c"):
        mixed(standardize={"a": [0, 1], "c": [0, 1]})


def test_refuses_by_name(pair: dict[str, RFNetReward]) -> None:
    with pytest.raises(ValueError, match="weights and rewards differ: b, c"):
        Mix(pair, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        Mix({})
