"""The command that repairs images, on tiny networks: what it changes, what it leaves, how it resumes."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.models.rahf.repair import flaw_mask, repair
from src.repair import main
from src.runtime.checkpoint import load
from tests.diffusion import tiny
from tests.rewards import tiny as nets

SIZE = 64


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("nets")
    tiny.generator().save(home / "generator")
    return [
        f"generator.folder={home / 'generator'}", "generator.num_steps=2", "device=cpu", "threads=1",
        f"checkpoint={nets.checkpoint(home / 'rahf', nets.RAHF)}", "candidates=3",
    ]  # fmt: skip


def shop(folder: Path, count: int = 3) -> tuple[str, list[np.ndarray]]:
    """Noisy images with a product in their middle, and the table that names them."""
    rng, lines, images = np.random.default_rng(0), ["key,image,product,prompt"], []
    folder.mkdir()
    for row in range(count):
        images.append(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        product = np.zeros((SIZE, SIZE, 4), np.uint8)
        product[24:40, 20:36] = 200
        Image.fromarray(images[-1]).save(folder / f"image{row}.png")
        Image.fromarray(product).save(folder / f"product{row}.png")
        lines.append(f"ad{row},image{row}.png,product{row}.png,a red room")
    (folder / "ads.csv").write_text("\n".join(lines) + "\n")
    return f"table={folder / 'ads.csv'}", images


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["repair", *words])
    return main()


def manifest(out: Path) -> dict[str, dict]:
    return {row["key"]: row for row in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def network(folder: Path) -> Any:
    return load(nets.checkpoint(folder, nets.RAHF))


def record(image: np.ndarray) -> dict:
    product = np.zeros((4, SIZE, SIZE), np.uint8)
    product[:, 24:40, 20:36] = 255
    return {"key": "ad", "prompt": "a red room", "image": image.transpose(2, 0, 1).copy(), "product": product}


def test_the_mask_is_the_region_above_the_threshold_grown_without_the_product():
    heat = torch.zeros(40, 40)
    heat[20, 20], heat[5, 5] = 0.6, 0.4
    product = torch.zeros(40, 40)
    product[:, 22:] = 0.1
    mask = flaw_mask(heat, 0.5, 0.05, product)  # grown by 2 px
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[18:23, 18:22] = True
    assert torch.equal(mask, expected)
    assert flaw_mask(heat, 0.5, 0.0, None).sum() == 1
    assert not flaw_mask(heat, 0.6, 0.05, None).any()


def test_only_the_mask_changes_and_the_best_candidate_is_kept(tmp_path):
    generator, rahf = tiny.generator(num_steps=2), network(tmp_path)
    _, images = shop(tmp_path / "shop")
    row = record(images[0])
    given = {"key": ["ad"], "image": torch.from_numpy(row["image"])[None].float() / 255, "prompt": ["a red room"]}
    heat = rahf.predict(given)
    level = float(heat.heat_maps[0, 0].quantile(0.9))
    result = repair(generator, rahf, row, level, 0.02, candidates=4, seed=0)
    assert 0 < result.mask.float().mean() < 0.9
    assert not result.mask[24:40, 20:36].any()
    assert len(result.values) == 4
    original = torch.from_numpy(row["image"])
    if result.best is None:
        assert max(result.values) <= result.before
        assert torch.equal(result.image, original)
    else:
        assert result.values[result.best] == max(result.values) > result.before
        assert torch.equal(result.image[:, ~result.mask], original[:, ~result.mask])
        assert not torch.equal(result.image, original)
        shown = rahf.assess(result.image[None].float() / 255, ["a red room"])[1]["plausibility"]
        assert float(shown) == pytest.approx(max(result.values), abs=1e-5)
    again = repair(generator, rahf, row, level, 0.02, candidates=2, seed=0)
    assert again.values == pytest.approx(result.values[:2], abs=1e-5), "a candidate depends on its number alone"


def test_an_image_without_a_finding_is_left_alone(tmp_path):
    generator, rahf = tiny.generator(num_steps=2), network(tmp_path)
    _, images = shop(tmp_path / "shop", 1)
    result = repair(generator, rahf, record(images[0]), 0.999, 0.05, candidates=2, seed=0)
    assert (result.values, result.best) == ([], None)
    assert torch.equal(result.image, torch.from_numpy(record(images[0])["image"]))


def test_every_image_has_a_file_and_a_line_and_the_command_resumes(words, tmp_path, monkeypatch, capsys):
    table, images = shop(tmp_path / "shop")
    out = tmp_path / "out"
    words = [*words, table, f"out={out}", "threshold=0.06"]
    assert command(monkeypatch, *words) == 0
    rows = manifest(out)
    assert sorted(rows) == ["ad0", "ad1", "ad2"]
    found, better = (sum(row[name] for row in rows.values()) for name in ("found", "repaired"))
    assert f"{found} of 3 images with detected flaws, {better} repaired" in capsys.readouterr().out
    for number, image in enumerate(images):
        row, written = rows[f"ad{number}"], np.asarray(Image.open(out / f"ad{number}.png"))
        assert np.array_equal(written[24:40, 20:36], image[24:40, 20:36]), "the product stays"
        assert (written != image).any() == row["repaired"]
        assert row["after"] >= row["before"]
        assert (np.abs(written.astype(int) - image).max(axis=2) > 0).mean() <= row["area"]
    (out / "ad1.png").unlink()
    first = (out / "ad0.png").stat().st_mtime_ns
    assert command(monkeypatch, *words) == 0
    assert (out / "ad0.png").stat().st_mtime_ns == first
    assert manifest(out)["ad1"] == rows["ad1"]
    assert command(monkeypatch, *words, "dilation=0.1") == 2
    assert "a run that differs in dilation" in capsys.readouterr().err


def test_failed_rows_are_listed_and_the_others_repaired(words, tmp_path, monkeypatch, capsys):
    table, _ = shop(tmp_path / "shop")
    (tmp_path / "shop/image1.png").write_bytes(b"no image")
    Image.new("RGB", (50, 50)).save(tmp_path / "shop/image2.png")
    Image.new("RGBA", (50, 50), (9, 9, 9, 255)).save(tmp_path / "shop/product2.png")
    assert command(monkeypatch, *words, table, f"out={tmp_path / 'out'}") == 1
    assert sorted(manifest(tmp_path / "out")) == ["ad0"]
    failed = (tmp_path / "out/failed.csv").read_text()
    assert "ad1" in failed
    assert "the image is 50x50; this generator needs multiples of 4 px" in failed


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "give either table=FILE or folder=DIR"),
        (["candidates=0"], "candidates=0 must be at least 1"),
        (["dilation=1.5"], r"dilation=1.5 in [0, 1)"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, tmp_path, monkeypatch, capsys, more, told):
    table, _ = shop(tmp_path / "shop", 1)
    assert command(monkeypatch, *words, *([table] if more else []), f"out={tmp_path / 'out'}", *more) == 2
    assert told in capsys.readouterr().err
