"""The Inception of the FID: its pooling by hand, and its weights by name."""

from pathlib import Path

import pytest
import torch
from torchvision.models.inception import InceptionA

from src.models.features import feature_net
from src.models.inception import _A, COUNTER, inside, network


def test_pooling_ignores_what_is_outside():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert inside(x)[0, 0].tolist() == [[2.0, 2.5, 3.0], [3.5, 4.0, 4.5], [5.0, 5.5, 6.0]]
    assert inside(torch.ones(1, 1, 4, 4)).eq(1).all()


def test_a_block_differs_from_torchvisions_at_the_border_of_its_pooling_only():
    torch.manual_seed(0)
    ours = _A(8, 4).eval()
    theirs = InceptionA(8, 4).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(1, 8, 6, 6) + 1
    first, second = ours(x), theirs(x)
    assert torch.equal(first[:, :-4], second[:, :-4])
    torch.testing.assert_close(first[..., 1:-1, 1:-1], second[..., 1:-1, 1:-1])
    assert (first[:, -4:] - second[:, -4:]).abs()[..., 0, :].max() > 1e-3


def test_it_reads_a_file_and_gives_2048_features(tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = network().state_dict()
    names = {name for name in state if not name.endswith(COUNTER)}
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias"} <= names
    assert state["fc.weight"].shape == (1008, 2048)
    torch.save({name: state[name] for name in names}, tmp_path / "inception.pth")
    net = feature_net("inception", tmp_path / "inception.pth")
    images = torch.rand(2, 3, 40, 60)
    with torch.no_grad():
        both, first = net(images), net(images[:1])
    assert both.shape == (2, 2048)
    torch.testing.assert_close(both[:1], first, rtol=1e-3, atol=1e-5)
    assert not any(weight.requires_grad for weight in net.parameters())


def test_missing_weights_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"features=inception needs its weights, a file such as pt_inception"):
        feature_net("inception")
    with pytest.raises(ValueError, match="There is no checkpoint folder"):
        feature_net("inception", tmp_path / "none/weights.pth")
