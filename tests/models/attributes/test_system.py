"""The attribute reader: what a prompt names, what a picture shows, and the share of it that agrees."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from src.build import build
from src.config import compose
from src.data.module import AdData
from src.data.showroom.rooms import COLOURS, LIGHTS, MATERIALS
from src.data.showroom.scene import brief
from src.data.showroom.sprites import catalogue
from src.data.showroom.text import PATTERN_WORDS, prompt
from src.data.splits import Source
from src.models.attributes.system import AttributeReader, named
from src.models.layers import ImageEncoderSettings
from tests.data.records import Records

TINY: dict[str, Any] = {
    "attributes": {
        "wall": {"ends": ["wall"], "values": ["blue", "sky blue", "red"]},
        "light": {"ends": ["light", "daylight"], "values": ["warm", "cool"]},
    },
    "image_encoder": ImageEncoderSettings("test_resnet", size=32),
    "width": 16,
    "lr": 1e-2,
}


def test_a_value_is_the_longest_in_the_clause_with_one_of_the_ends():
    walls = ["blue", "sky blue", "red"]
    assert named("a chair, sky blue painted wall, next to a red lamp", ["wall"], walls) == 1
    assert named("a chair, blue wall", ["wall"], walls) == 0
    assert named("a wall clock in red, oak floor", ["wall"], walls) == -100  # no clause ends in wall
    assert named("a chair, reddish wall", ["wall"], walls) == -100  # no whole word
    assert named("", ["wall"], walls) == -100


def test_the_yaml_reads_every_prompt_of_the_showroom():
    reader = build(compose("fit", ["model=reader"]).model)
    for group in range(300):
        plan = brief(0, "train", group)
        found = {name: values[named(prompt(plan), ends, values)] for name, (ends, values) in reader.attributes.items()}
        what = plan.setting
        pattern = PATTERN_WORDS[what.pattern]
        expected = {"wall": what.wall, "pattern": pattern, "floor": what.floor, "light": what.light, "prop": what.prop}
        assert found == expected
    values = {name: set(values) for name, (_, values) in reader.attributes.items()}
    assert values["wall"] == set(COLOURS)
    assert values["floor"] == set(MATERIALS)
    assert values["light"] == set(LIGHTS)
    assert values["pattern"] == set(PATTERN_WORDS.values())
    assert values["prop"] == {item.name for item in catalogue() if item.role == "prop"}


class Walls(Source):
    """Images of one color with the prompts that say so."""

    classes = ("any",)
    fields = frozenset({"key", "image", "prompt"})

    def split(self, name: str) -> Records:
        def record(i: int) -> dict:
            picture = np.zeros((3, 32, 32), np.uint8)
            picture[2 if i % 2 else 0] = 200
            return {"key": f"{i}", "image": picture, "prompt": f"a chair, {'blue' if i % 2 else 'red'} wall"}

        return Records(map(record, range(32)))


def test_it_learns_and_says_which_images_follow_their_prompts():
    torch.manual_seed(0)
    reader = AttributeReader(**TINY)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=24, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = AdData(Walls(), batch_size=8, num_workers=0)
    trainer.fit(reader, data)
    assert float(trainer.callback_metrics["val/wall"]) == 1
    assert float(trainer.callback_metrics["val/accuracy"]) == 1  # lights, which no prompt names, do not count
    reader.eval()
    images = next(iter(data.batches("test")))["image"][:2]  # red, blue
    asked = {"prompt": ["red wall", "red wall, warm light"], "key": ["a", "b"]}
    followed = reader.followed(images, asked)
    assert followed["wall"].tolist() == [1, 0]
    assert int(followed["light"][0]) == -100
    assert int(followed["light"][1]) in (0, 1)
    with pytest.raises(ValueError, match=r"^wall logits: NaN or infinite for 1 of 2 images \(b\)"):
        reader.followed(torch.stack([images[0], images[1] * torch.nan]), asked)

    class Silent(Walls):
        def split(self, name):
            return [record | {"prompt": "a chair"} for record in super().split(name)]

    with pytest.raises(ValueError, match="no prompt of the test split names one of wall, light"):
        trainer.test(reader, AdData(Silent(), batch_size=8, num_workers=0), verbose=False)


def test_a_batch_that_names_nothing_has_a_loss_of_zero():
    reader = AttributeReader(**TINY)
    loss = reader.loss(reader(torch.rand(2, 3, 32, 32)), reader.labels(["nothing", "at all"]))
    loss.backward()
    assert float(loss.detach()) == 0
