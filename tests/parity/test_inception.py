"""The Inception of the FID against pytorch-fid; `make test-parity` installs it in an environment of its own."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from src.models.inception import Inception, network

if find_spec("pytorch_fid") is None:  # an import that fails for another reason is an error
    pytest.skip("pytorch-fid is not installed: make test-parity", allow_module_level=True)
pytestmark = pytest.mark.parity


def test_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With random weights, which pytorch-fid reads from the same file instead of its own."""
    official = import_module("pytorch_fid.inception")
    torch.manual_seed(0)
    state, file = network().state_dict(), tmp_path / "inception.pth"
    for name, value in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
        elif name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    torch.save(state, file)
    monkeypatch.setattr(official, "load_state_dict_from_url", lambda *_, **__: torch.load(file, weights_only=True))
    images = torch.rand(2, 3, 70, 90)
    with torch.no_grad():
        expected = official.InceptionV3([3]).eval()(images)[0].flatten(1)
        torch.testing.assert_close(Inception(file)(images), expected)
