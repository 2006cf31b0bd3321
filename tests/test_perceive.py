import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from src.data.rf1m import RF1M, write_example
from src.models.perception.system import load_perception
from src.perceive import main
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
    assert "20 images with depth and saliency in" in capsys.readouterr().out  # 4 of the 24 are unsuitable
    source = RF1M(str(root), size=32, depth=str(tmp_path / "maps/depth"), saliency=str(tmp_path / "maps/saliency"))
    record = source.split("train")[0]
    image = torch.from_numpy(record["image"])[None].float() / 255
    for field, folder in nets.items():
        with torch.no_grad():
            made = load_perception(folder, field)(image)[0].numpy()
        np.testing.assert_allclose(record[field] / 255, made, atol=0.51 / 255)
    assert command(monkeypatch, *words, "data.size=16") == 2
    assert "a run that differs in size; choose another out" in capsys.readouterr().err
    assert command(monkeypatch, *words, f"data.depth={tmp_path / 'maps/depth'}", "data.transforms.perceived=null") == 2
    assert "has all maps that data.transforms can compute" in capsys.readouterr().err


def maps(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_what_is_there_is_kept_and_what_is_missing_or_new_is_computed(root, nets, tmp_path, monkeypatch, capsys):
    words = [f"data.root={root}", f"data.transforms.perceived={{depth: {nets['depth']}, saliency: null}}"]
    words += [f"out={tmp_path / 'maps'}"]
    words += ["data.titles=null", "data.products=null", "data.size=32"]
    assert command(monkeypatch, *words) == 0
    made = maps(tmp_path / "maps")
    first = {name: (tmp_path / "maps" / name).stat().st_mtime_ns for name in made}
    gone = "depth/part_00/sku000000.png"
    (tmp_path / "maps" / gone).unlink()
    with (tmp_path / "maps/manifest.jsonl").open("a") as file:
        file.write('{"key": "part_0')  # torn by a kill
    added = [shutil.copy(root / "part_00/sku000000.jpg", root / f"part_00/new{i}.jpg").name for i in range(3)]
    labels = (root / "label.txt").read_text()
    (root / "label.txt").write_text("".join(f"part_00/{name}\t1\n" for name in added) + labels)
    capsys.readouterr()
    assert command(monkeypatch, *words) == 0
    assert "23 images with depth in" in capsys.readouterr().out
    assert maps(tmp_path / "maps") == made | {f"depth/part_00/new{i}.png" for i in range(3)}
    kept = {name for name in made if (tmp_path / "maps" / name).stat().st_mtime_ns == first[name]}
    assert kept == made - {gone}
    before = (tmp_path / "maps/depth/part_00/new0.png").read_bytes()
    with Image.open(root / "part_00/new0.jpg") as image:  # replaced under its name
        image.rotate(180).save(root / "part_00/new0.jpg")
    (root / "part_00/new1.jpg").unlink()
    (root / "label.txt").write_text((root / "label.txt").read_text().replace("part_00/new1.jpg\t1\n", ""))
    (tmp_path / "maps/depth/part_00/new1.png").unlink()
    assert command(monkeypatch, *words) == 0
    assert "22 images with depth in" in capsys.readouterr().out
    assert (tmp_path / "maps/depth/part_00/new0.png").read_bytes() != before
    rows = [json.loads(line) for line in (tmp_path / "maps/manifest.jsonl").read_text().splitlines()]
    assert {row["depth"] for row in rows} == maps(tmp_path / "maps")


def test_maps_of_other_weights_are_not_taken_for_done(root, nets, tmp_path, monkeypatch, capsys):
    net = shutil.copytree(nets["depth"], tmp_path / "net")
    words = [f"data.root={root}", f"data.transforms.perceived={{depth: {net}, saliency: null}}"]
    words += [f"out={tmp_path / 'maps'}", "data.size=32"]
    assert command(monkeypatch, *words) == 0
    weights = load_file(net / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, net / "model.safetensors")
    assert command(monkeypatch, *words) == 2
    assert "a run that differs in weights of perceived; choose another out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{root}/part_00/sku000000.jpg"], ""),  # an absolute path: the map lies below out all the same
        (["../rf1m/part_00/sku000000.jpg"], "points outside"),
        (["part_00/a.jpg", "part_00/a.png"], "the keys 'part_00/a.jpg' and 'part_00/a.png' map to the same file"),
    ],
)
def test_a_key_writes_nothing_outside_the_output(lines, told, root, nets, tmp_path, monkeypatch, capsys):
    for name in ("a.jpg", "a.png"):
        shutil.copy(root / "part_00/sku000000.jpg", root / "part_00" / name)
    (root / "label.txt").write_text("".join(f"{line.format(root=root)}\t1\n" for line in lines))
    words = [
        f"data.root={root}",
        f"data.transforms.perceived={{depth: {nets['depth']}, saliency: null}}",
        "data.size=32",
    ]
    words += ["data.titles=null", "data.products=null", "data.val=0", "data.test=0", "data.size=32"]
    words += [f"out={root / 'maps'}"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert command(monkeypatch, *words) == (2 if told else 0)
    assert told in capsys.readouterr().err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert all(path.is_relative_to(root / "maps/") for path in after.keys() - before.keys())
    assert len(maps(root / "maps")) == (not told)


def test_maps_that_were_there_are_not_replaced(root, nets, monkeypatch, capsys):
    words = [f"data.root={root}", f"data.transforms.perceived={{depth: {nets['depth']}, saliency: null}}"]
    words += [f"out={root}", "data.size=32"]
    for folder in ("part_00", "part_01", "part_02", "part_03"):  # the user's own maps, in folders like the images'
        shutil.copytree(root / "depth", root / "depth" / folder)
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    assert command(monkeypatch, *words) == 2
    assert "was not written by this command; choose another out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


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
