"""The benchmark of RAHF's uses, on tiny networks."""

from pathlib import Path

import pytest
import torch

from benchmarks import feedback
from src.data.showroom.world import Showroom
from src.models.rahf.reward import RAHFReward
from tests.diffusion import tiny
from tests.rewards.tiny import rahf


def test_each_use_makes_images_of_the_same_products(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reward, rows = RAHFReward(rahf(tmp_path)["checkpoint"]), Showroom({"test": 2}, size=tiny.SIZE).split("test")
    reward.rahf.net.thresholds.fill_(0.0)  # everything but the product is repaired
    words = feedback.WORDS | {"attempts": "2", "candidates": "2", "scale": "0.5"}
    found = feedback.images_of([rows[0], rows[1]], tiny.generator(), reward, 5, words)
    assert {name: len(images) for name, images in found.items()} == {
        "attempts": 2, "first": 2, "chosen": 2, "repaired": 2, "mirrored": 2, "guided": 2,
    }  # fmt: skip
    batch = {"prompt": [rows[0]["prompt"], rows[1]["prompt"]]}
    values = {name: reward(images, batch).value for name, images in found.items() if name != "attempts"}
    assert (values["chosen"] >= values["first"]).all()
    assert (values["repaired"] >= values["first"]).all()
    assert (found["guided"] - found["first"]).abs().max() > 0.01
    for number in range(2):
        product = torch.from_numpy(rows[number]["product"][3] == 255)
        assert torch.equal(found["repaired"][number][:, product], found["first"][number][:, product])


def test_gains_are_of_one_seed_each_and_their_mean_and_deviation_are_reported() -> None:
    runs = [
        {way: {"availability": 0.5 + gain * (way != "first"), "attribute_accuracy": 0.8} for way in feedback.WAYS}
        for gain in (0.1, 0.3)
    ]
    found = feedback.summary(runs)
    assert found["repaired"]["gain"]["mean"] == pytest.approx(0.2)
    assert found["repaired"]["gain"]["sd"] == pytest.approx(0.1414, abs=1e-4)
    assert "gain" not in found["first"]
    assert found["first"]["availability"] == {"mean": 0.5, "sd": 0.0}
    assert "sd" not in feedback.summary(runs[:1])["first"]["availability"]
