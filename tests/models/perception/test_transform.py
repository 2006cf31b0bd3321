import pytest
import torch

from src.models.perception.system import Saliency
from src.models.perception.transform import Perceived
from src.runtime import checkpoint


def test_it_makes_the_maps_that_it_is_asked_for_and_loads_only_their_nets(tmp_path):
    about = dict.fromkeys((*checkpoint.ABOUT,), "x")
    config = {"_target_": "src.models.perception.system.Saliency", "size": "tiny", "image_size": 32}
    checkpoint.save(tmp_path / "saliency", Saliency(size="tiny", image_size=32), config, {}, about)
    folder = str(tmp_path / "saliency")
    perceived = Perceived(depth=folder, saliency=folder)
    assert perceived.makes == {"depth", "saliency"}
    assert Perceived(depth=None, saliency="x").makes == {"saliency"}
    made = frozenset({"saliency"})
    perceived.prepare(made)
    images = torch.rand(2, 3, 8, 8)
    maps = perceived({"key": ["a", "b"], "image": images}, made, seed=0)
    net = checkpoint.load(tmp_path / "saliency")
    assert maps.keys() == made
    assert torch.equal(maps["saliency"], net(images))
    assert not any(weight.requires_grad for weight in perceived.parameters())
    with pytest.raises(ValueError, match="holds Saliency, not Depth"):
        perceived.prepare(perceived.makes)
