import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.module import AdData
from src.data.rf1m import RF1M, write_example
from src.models.perception.system import load_perception
from src.models.perception.transform import Perceived
from src.perceive import Done, main, perceive
from tests.rewards import tiny


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tiny.rfnet(tmp_path_factory.mktemp("nets"))
    return {field: made[field] for field in ("depth", "saliency")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_example(tmp_path / "rf1m", count=24, size=32)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["perceive", "data=rf1m", "device=cpu", "threads=1", "data.num_workers=0", *words])
    return main()


def test_the_maps_are_the_nets_and_the_reader_takes_them(root, nets, tmp_path, monkeypatch, capsys):
    words = [f"data.root={root}", f"data.transforms.perceived={{depth: {nets['depth']}, saliency: {nets['saliency']}}}"]
    words += ["data.size=32", "data.val=0.2", "data.test=0.2", f"out={tmp_path / 'maps'}"]
    assert command(monkeypatch, *words) == 0
    assert "depth: 20 maps" in capsys.readouterr().out  # 4 of the 24 are unsuitable
    source = RF1M(str(root), size=32, depth=str(tmp_path / "maps/depth"), saliency=str(tmp_path / "maps/saliency"))
    record = source.split("train")[0]
    image = torch.from_numpy(record["image"])[None].float() / 255
    for field, folder in nets.items():
        with torch.no_grad():
            made = load_perception(folder, field)(image)[0].numpy()
        np.testing.assert_allclose(record[field] / 255, made, atol=0.51 / 255)
    assert command(monkeypatch, *words, "data.size=16") == 2
    assert "holds maps of another size; choose another out" in capsys.readouterr().err
    assert command(monkeypatch, *words, f"data.depth={tmp_path / 'maps/depth'}", "data.transforms.perceived=null") == 2
    assert "lacks no map" in capsys.readouterr().err


def test_it_goes_on_where_it_was_killed(root, nets, tmp_path):
    data = AdData(
        RF1M(str(root), size=32, val=0, test=0),
        batch_size=4,
        num_workers=0,
        transforms={"perceived": Perceived(**nets)},
    )
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/done.json").write_text(json.dumps({"of": {}, "rows": {"train": 13}}))
    done = Done(tmp_path / "maps", {})
    perceive(data, "train", tmp_path / "maps", done, torch.device("cpu"))
    made = {path.stem for path in (tmp_path / "maps/saliency").rglob("*.png")}
    assert made == {Path(data.split("train")[row]["key"]).stem for row in range(13, 20)}
    assert Done(tmp_path / "maps", {}).rows == {"train": 20, "val": 0, "test": 0}
    assert Image.open(next((tmp_path / "maps/depth").rglob("*.png"))).size == (32, 32)


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_maps_have_the_shape_of_their_pictures_and_fit_again(root, nets, tmp_path, monkeypatch, fit):
    for path in [*root.rglob("*.jpg"), *root.glob("products/*.png")]:
        with Image.open(path) as picture:
            picture.load()
        picture.resize((48, 20)).save(path)
    words = [f"data.root={root}", f"data.transforms.perceived={{depth: {nets['depth']}, saliency: {nets['saliency']}}}"]
    words += ["data.size=32", f"data.fit={fit}", f"out={tmp_path / 'maps'}"]
    assert command(monkeypatch, *words) == 0
    made = next((tmp_path / "maps/depth").rglob("*.png"))
    assert Image.open(made).size == (32, 13)
    depth, saliency = str(tmp_path / "maps/depth"), str(tmp_path / "maps/saliency")
    record = RF1M(str(root), size=32, fit=fit, depth=depth, saliency=saliency).split("train")[0]
    image = torch.from_numpy(record["image"])[None].float() / 255
    with torch.no_grad():
        net = load_perception(nets["depth"], "depth")(image)[0].numpy()
    inside = slice(9, 22) if fit == "pad" else slice(None)
    assert abs(record["depth"][:, inside] / 255 - net[:, inside]).mean() < 0.06
    assert net[:, inside].std() > 0.08
