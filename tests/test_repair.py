"""The command that repairs images, on tiny networks: what it changes, what it leaves, how it resumes."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.batch import SCORES
from src.models.rahf.repair import RepairSettings, flaw_mask, plausibility, repair
from src.models.rahf.system import RAHFSystem
from src.repair import main
from src.runtime.checkpoint import ABOUT, load, save
from src.score import main as score
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


def network(folder: Path, sign: int = 1) -> str:
    """A checkpoint of RAHF; with sign=-1 one that finds plausible what the other does not."""
    if sign == 1:
        return nets.checkpoint(folder, nets.RAHF)
    rahf: Any = load(nets.checkpoint(folder / "other", nets.RAHF))
    with torch.no_grad():
        for weight in rahf.net.score_heads[SCORES.index("plausibility")][-1].parameters():
            weight.neg_()
    save(folder, rahf, nets.RAHF, {}, dict.fromkeys(ABOUT, "a test"))
    return str(folder)


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


def level(rahf: RAHFSystem, image: np.ndarray, share: float = 0.1) -> float:
    """The threshold above which this share of the implausibility map lies."""
    heat, _ = plausibility(rahf, torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255, ["a red room"])
    return float(heat.detach().quantile(1 - share))


def test_only_the_mask_changes_and_the_best_candidate_is_kept(tmp_path):
    generator, (_, images) = tiny.generator(num_steps=2), shop(tmp_path / "shop", 1)
    row, original = record(images[0]), torch.from_numpy(record(images[0])["image"])
    results = []
    for sign in (1, -1):
        rahf = load(network(tmp_path / f"rahf{sign}", sign))
        assert isinstance(rahf, RAHFSystem)
        settings = RepairSettings(level(rahf, images[0]), 0.02, candidates=1)
        results.append(repair(generator, rahf, row, settings))
        many = repair(generator, rahf, row, replace(settings, candidates=4))
        assert many.values[0] == pytest.approx(results[-1].values[0], abs=1e-5), "it depends on its number alone"
        assert many.before == pytest.approx(results[-1].before, abs=1e-6)
        if many.best is not None:
            assert many.values[many.best] == max(many.values) > many.before
            shown = plausibility(rahf, many.image[None].float() / 255, ["a red room"])[1]
            assert float(shown.detach()) == pytest.approx(max(many.values), abs=1e-5)
    kept, left = sorted(results, key=lambda result: result.best is None)
    assert kept.best == 0, "of a network and its opposite one prefers the candidate"
    assert kept.values[0] > kept.before
    assert 0 < kept.mask.float().mean() < 0.9
    assert not kept.mask[24:40, 20:36].any()
    assert torch.equal(kept.image[:, ~kept.mask], original[:, ~kept.mask])
    assert torch.equal(kept.image[:, 24:40, 20:36], original[:, 24:40, 20:36])
    assert (kept.image != original).any(dim=0)[kept.mask].float().mean() > 0.9
    assert (left.best, len(left.values)) == (None, 1), "and the other one keeps the image"
    assert left.values[0] < left.before
    assert torch.equal(left.image, original)


def test_an_image_without_a_finding_is_left_alone(tmp_path):
    generator, rahf = tiny.generator(num_steps=2), load(network(tmp_path / "rahf"))
    assert isinstance(rahf, RAHFSystem)
    _, images = shop(tmp_path / "shop", 1)
    result = repair(generator, rahf, record(images[0]), RepairSettings(0.999, 0.05, candidates=2))
    assert (result.values, result.best) == ([], None)
    assert result.peak < 0.999
    assert not result.mask.any()
    assert torch.equal(result.image, torch.from_numpy(record(images[0])["image"]))


def test_every_image_has_a_file_and_a_line_and_the_command_resumes(words, tmp_path, monkeypatch, capsys):
    table, images = shop(tmp_path / "shop")
    better = 0
    for sign in (1, -1):
        out, rahf = tmp_path / f"out{sign}", network(tmp_path / f"rahf{sign}", sign)
        told = [*words, table, f"out={out}", f"checkpoint={rahf}", "threshold=0.06"]
        assert command(monkeypatch, *told) == 0
        rows = manifest(out)
        assert sorted(rows) == ["ad0", "ad1", "ad2"]
        assert all(row["found"] for row in rows.values())
        count = sum(row["repaired"] for row in rows.values())
        assert f"3 of 3 images with detected flaws, {count} repaired" in capsys.readouterr().out
        better += count
        for number, image in enumerate(images):
            row, written = rows[f"ad{number}"], np.asarray(Image.open(out / f"ad{number}.png"))
            assert np.array_equal(written[24:40, 20:36], image[24:40, 20:36]), "the product stays"
            assert (written != image).any() == row["repaired"]
            assert row["after"] > row["before"] if row["repaired"] else row["after"] == row["before"]
            assert (written != image).any(axis=2).mean() <= row["area"]
    assert better >= 3, "for each image one network or its opposite prefers a candidate"
    (out / "ad1.png").unlink()
    first, listed = (out / "ad0.png").stat().st_mtime_ns, (out / "images.csv").read_bytes()
    assert command(monkeypatch, *told) == 0
    assert (out / "ad0.png").stat().st_mtime_ns == first
    assert manifest(out)["ad1"] == rows["ad1"]
    assert (out / "images.csv").read_bytes() == listed
    for word, differs in (
        ("dilation=0.1", "dilation"), ("candidates=1", "candidates"), ("generator.num_steps=1", "generator.num_steps"),
        ("generator.guidance_scale=2", "generator.guidance_scale"), ("threshold=0.07", "threshold"),
    ):  # fmt: skip
        assert command(monkeypatch, *told, word) == 2
        assert f"a run that differs in {differs};" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_another_scheduler(words, tmp_path, monkeypatch, capsys):
    table, _ = shop(tmp_path / "shop", 1)
    folder = tmp_path / "generator"
    shutil.copytree(dict(word.split("=") for word in words)["generator.folder"], folder)
    told = [*words, table, f"out={tmp_path / 'out'}", f"generator.folder={folder}"]
    assert command(monkeypatch, *told) == 0
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.02}))
    assert command(monkeypatch, *told) == 2
    assert "a run that differs in generator.scheduler;" in capsys.readouterr().err


def test_the_repaired_images_are_a_table_to_score(words, tmp_path, monkeypatch):
    table, _ = shop(tmp_path / "shop")
    out, rahf = tmp_path / "out", network(tmp_path / "rahf")
    assert command(monkeypatch, *words, table, f"out={out}", f"checkpoint={rahf}", "threshold=0.06") == 0
    with (out / "images.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert listed[0] == {
        "key": "ad0", "image": "ad0.png", "product": "../shop/product0.png", "prompt": "a red room"
    }  # fmt: skip
    reward = ["reward=rahf", f"reward.checkpoint={rahf}", "device=cpu", "threads=1"]
    monkeypatch.setattr(sys, "argv", ["score", *reward, f"table={out / 'images.csv'}", f"out={out / 'scores.csv'}"])
    assert score() == 0
    with (out / "scores.csv").open(newline="") as file:
        values = {row["key"]: float(row["value"]) for row in csv.DictReader(file)}
    assert values == pytest.approx({key: row["after"] for key, row in manifest(out).items()}, abs=1e-5)


def test_keys_that_are_image_names_name_the_files_and_those_that_differ_in_the_suffix_are_refused(
    words, tmp_path, monkeypatch, capsys
):
    table, _ = shop(tmp_path / "shop", 2)
    file = tmp_path / "shop/ads.csv"
    file.write_text(file.read_text().replace("key,", "").replace("ad0,", "").replace("ad1,", ""))
    told = [*words, table, f"out={tmp_path / 'out'}", "threshold=0.999"]
    assert command(monkeypatch, *told) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["image0.png", "image1.png"]
    assert sorted(manifest(tmp_path / "out")) == ["image0.png", "image1.png"]
    (tmp_path / "shop/image1.png").rename(tmp_path / "shop/image0.webp")
    file.write_text(file.read_text().replace("image1.png", "image0.webp"))
    assert command(monkeypatch, *told, f"out={tmp_path / 'other'}") == 2
    assert "the keys 'image0.png' and 'image0.webp' map to the same file" in capsys.readouterr().err


def test_a_table_of_the_user_in_the_output_folder_is_not_replaced(words, tmp_path, monkeypatch, capsys):
    table, _ = shop(tmp_path / "shop", 1)
    (tmp_path / "shop/ads.csv").rename(tmp_path / "shop/images.csv")
    before = (tmp_path / "shop/images.csv").read_bytes()
    told = [*words, table.replace("ads.csv", "images.csv"), f"out={tmp_path / 'shop'}"]
    assert command(monkeypatch, *told) == 2
    assert "images.csv was not written by this command" in capsys.readouterr().err
    assert (tmp_path / "shop/images.csv").read_bytes() == before


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
        (["candidates=0"], "candidates=0 must be a whole number, at least 1"),
        (["dilation=1.5"], "dilation=1.5 must be a number in [0, 1)"),
        (["dilation=null"], "dilation=None must be a number in [0, 1)"),
        (["threshold=-0.1"], "threshold=-0.1 must be a number in [0, 1]"),
        (["threshold=1.1"], "threshold=1.1 must be a number in [0, 1]"),
        (["threshold=high"], "threshold=high must be a number in [0, 1]"),
        (["generator=null"], "generator=null: choose a generator"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, tmp_path, monkeypatch, capsys, more, told):
    table, _ = shop(tmp_path / "shop", 1)
    words = [word for word in words if "generator=null" not in more or not word.startswith("generator.")]
    assert command(monkeypatch, *words, *([table] if more else []), f"out={tmp_path / 'out'}", *more) == 2
    assert told in capsys.readouterr().err
