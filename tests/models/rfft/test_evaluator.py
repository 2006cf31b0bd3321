"""The evaluator: its measures are those of its members, and the same again."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from src.metrics.diversity import between_prompt_diversity, within_prompt_dissimilarity, within_prompt_diversity
from src.models.rfft.evaluator import Evaluator
from src.models.rfnet.reward import RFNetReward
from src.rewards.base import Reward, Score
from src.runtime.checkpoint import load
from tests.diffusion import tiny
from tests.models.attributes.test_system import TINY as READER
from tests.rewards import tiny as nets


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("evaluator")
    encoder = {"_target_": "src.models.layers.ImageEncoderSettings", **asdict(READER["image_encoder"])}
    reader = {"_target_": "src.models.attributes.system.AttributeReader", **READER, "image_encoder": encoder}
    return {"judge": nets.rfnet(home), "reader": nets.checkpoint(home / "reader", reader)}


def read(folder: str) -> Any:
    return load(folder)


def ads(count: int = 3):
    prompts = ["a chair, red wall, warm light", "a chair, blue wall", "a chair"]
    return tiny.ads(count) | {"prompt": prompts[:count], "title": ["chair"] * count}


def test_its_measures_are_its_members_over_the_tries(folders):
    judge, reader = RFNetReward(**folders["judge"]), read(folders["reader"])
    evaluator, generator, batch = Evaluator(judge, reader, tries=3, threshold=0.2), tiny.generator(), ads()
    assert evaluator.fields == {"product", "title"}
    assert not any(weight.requires_grad for weight in evaluator.parameters())
    measures, pictures = evaluator(generator, batch)
    assert pictures.shape == (3, 3, 3, tiny.SIZE, tiny.SIZE)
    with torch.no_grad():
        seen = [
            {**batch, "image": p, "depth": judge.perception["depth"](p), "saliency": judge.perception["saliency"](p)}
            for p in pictures
        ]
        chances = torch.stack([judge.rfnet.log_probabilities(view)[:, 0].exp() for view in seen])
        seen_by = [reader(images) for images in pictures]
        features = torch.stack([reader.net.features(images) for images in pictures])
    torch.testing.assert_close(measures["availability"], (chances >= 0.2).float().mean(dim=0))
    walls = torch.stack([r["wall"].argmax(dim=1) == torch.tensor([2, 0, -1]) for r in seen_by]).float()
    lights = torch.stack([r["light"].argmax(dim=1) == 0 for r in seen_by]).float()
    assert float(measures["attribute_accuracy"][0]) == pytest.approx(float((walls[:, 0] + lights[:, 0]).mean() / 2))
    assert float(measures["attribute_accuracy"][1]) == pytest.approx(float(walls[:, 1].mean()))
    assert measures["attribute_accuracy"][2].isnan()  # its prompt names nothing
    torch.testing.assert_close(measures["diversity"], within_prompt_diversity(features))
    torch.testing.assert_close(measures["between_prompts"], between_prompt_diversity(features))
    assert (measures["diversity"] > 0).all()
    only = Evaluator(None, reader, attributes=["light"], tries=3)(generator, batch)[0]["attribute_accuracy"]
    assert float(only[0]) == pytest.approx(float(lights[:, 0].mean()))
    assert only[1].isnan()
    torch.testing.assert_close(measures["dissimilarity"], within_prompt_dissimilarity(pictures))


def test_the_pictures_are_the_same_again_and_for_a_part_of_the_batch(folders):
    evaluator = Evaluator(RFNetReward(**folders["judge"]), read(folders["reader"]))
    generator, batch = tiny.generator(), ads()
    measures, pictures = evaluator(generator, batch)
    assert torch.equal(evaluator(generator, batch)[1], pictures)
    part = {name: value[:1] for name, value in batch.items()}
    torch.testing.assert_close(evaluator(generator, part)[1], pictures[:, :1], atol=1e-5, rtol=0)
    assert not torch.allclose(pictures[0], pictures[1])
    names = {"availability", "attribute_accuracy", "diversity", "between_prompts", "dissimilarity"}
    assert set(measures) == names
    assert set(Evaluator()(generator, batch)[0]) == {"dissimilarity"}


class Third(Reward):
    """Its value of a batch's third image is NaN."""

    fields = frozenset()

    def score(self, images, batch):
        value = torch.where(torch.arange(len(images)) == 2, torch.nan, -images.mean(dim=(1, 2, 3)))
        return Score(value, {})


def test_non_finite_values_are_an_error_with_their_keys(folders):
    generator, batch = tiny.generator(), ads()
    with pytest.raises(ValueError, match=rf"^rewards: NaN or infinite for 1 of 3 images \({batch['key'][2]}\)"):
        Evaluator()(generator, batch, Third())
    with pytest.raises(ValueError, match=r"^values of the judge: NaN or infinite for 1 of 3 images"):
        Evaluator(Third())(generator, batch)
    reader = read(folders["reader"])
    torch.nn.init.constant_(reader.net.heads["light"].weight, torch.nan)
    with pytest.raises(
        ValueError, match=rf"^light logits: NaN or infinite for 3 of 3 images \({', '.join(batch['key'])}\)"
    ):
        Evaluator(None, reader)(generator, batch)
    generator.vae.decoder.conv_out.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^generated images: NaN or infinite for 3 of 3 images"):
        Evaluator()(generator, batch)


def test_unfit_members_are_refused(folders):
    unfit: list[tuple[dict[str, Any], str]] = [
        ({"judge": RFNetReward(**folders["judge"], maps="batch")}, "needs depth, saliency of a generated image"),
        ({"reader": load(folders["judge"]["checkpoint"])}, "reader is a RFNetSystem, not an attribute reader"),
        ({"tries": 1}, "tries=1 must be at least 2"),
        (
            {"reader": read(folders["reader"]), "attributes": ["floor"]},
            "The reader has no attribute floor; it has wall, light",
        ),
    ]
    for words, told in unfit:
        with pytest.raises(ValueError, match=told):
            Evaluator(**words)
