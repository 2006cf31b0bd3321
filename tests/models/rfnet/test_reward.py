from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.data.batch import CLASSES, Batch
from src.models.rfnet.reward import RFNetReward
from tests.rewards import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.rfnet(tmp_path_factory.mktemp("rfnet"))


@pytest.fixture
def ads() -> tuple[Tensor, Batch]:
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 32, generator=noise).requires_grad_()
    return images, {"product": torch.rand(2, 4, 32, 32, generator=noise), "title": ["oak chair", "brass lamp 40 cm"]}


def gradient(reward: RFNetReward, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    value = reward(images, batch).value
    return value.detach(), torch.autograd.grad(value.sum(), images)[0]


def test_the_value_is_the_log_probability_of_available(folders: dict[str, Any], ads: tuple[Tensor, Batch]) -> None:
    score = RFNetReward(**folders)(*ads)
    assert tuple(score.parts) == CLASSES
    assert torch.equal(score.value, score.parts["available"])
    torch.testing.assert_close(torch.stack([*score.parts.values()]).exp().sum(dim=0), torch.ones(2))


def test_maps_are_computed_with_or_without_gradient_or_given(
    folders: dict[str, Any], ads: tuple[Tensor, Batch]
) -> None:
    images, batch = ads
    computed, detached, given = (RFNetReward(**folders, maps=maps) for maps in ("computed", "detached", "batch"))
    assert computed.fields == detached.fields == {"product", "title"}
    assert given.fields == {"product", "title", "depth", "saliency"}
    value, through_maps = gradient(computed, images, batch)
    same, past_maps = gradient(detached, images, batch)
    assert torch.equal(same, value)
    assert not torch.allclose(past_maps, through_maps, rtol=1e-3, atol=0)
    maps = {field: net(images).detach() for field, net in computed.perception.items()}
    assert set(maps) == {"depth", "saliency"}
    assert torch.equal(gradient(given, images, batch | maps)[0], value)
    torch.testing.assert_close(gradient(given, images, batch | maps)[1], past_maps)
    black = {field: torch.zeros_like(map) for field, map in maps.items()}
    assert not torch.equal(given(images, batch | black).value, value)
    assert torch.equal(computed(images, batch | black).value, value), "the batch's own maps are of another picture"


def test_a_net_without_a_map_needs_no_net_for_it(tmp_path: Path, ads: tuple[Tensor, Batch]) -> None:
    folder = tiny.checkpoint(tmp_path / "rfnet", tiny.RFNET | {"inputs": ["image", "product"]})
    reward = RFNetReward(folder, depth="none", saliency="none")
    assert reward.fields == {"product"}
    assert len(reward.perception) == 0
    assert reward(*ads).value.shape == (2,)


def test_what_is_no_rfnet_is_refused(folders: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maps=drawn: choose one of computed, detached, batch"):
        RFNetReward(**folders, maps="drawn")
    with pytest.raises(ValueError, match="depth holds Depth, not RFNetSystem"):
        RFNetReward(**folders | {"checkpoint": folders["depth"]})
    with pytest.raises(ValueError, match="holds Saliency"):
        RFNetReward(**folders | {"depth": folders["saliency"]})
    with pytest.raises(ValueError, match=r"no checkpoint folder .*none"):
        RFNetReward(tmp_path / "none")
    strange = tiny.checkpoint(tmp_path / "strange", tiny.RFNET | {"classes": ["available", "bad"]})
    assert tuple(RFNetReward(strange, folders["depth"], folders["saliency"]).rfnet.classes) == ("available", "bad")
