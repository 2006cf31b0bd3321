import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from src.build import build
from src.config import CONF
from src.data.ads import Ads, Folder, Table
from src.data.batch import CLASSES, Batch, collate, to_float
from src.figures.heat_maps import overlay
from src.models.rfnet.reward import RFNetReward
from src.rewards.base import Reward, Score
from src.runtime.run_output import RunOutput
from src.score import main, score
from tests.rewards import tiny


class Warmth(Reward):
    """How much redder than blue a picture is; not a number if its title says so."""

    fields = frozenset({"title"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        if "nan" in batch["title"]:
            images = (
                images
                * torch.tensor([float("nan") if title == "nan" else 1.0 for title in batch["title"]])[
                    :, None, None, None
                ]
            )
        colour = images.mean(dim=(2, 3))  # (batch, 3)
        return Score(colour @ self.weight, {"red": colour[:, 0]})


def fill(folder: Path, rows: int, sizes: tuple[tuple[int, int], ...] = ((16, 12),)) -> Path:
    """A table of `rows` good rows over eight pictures, products and titles."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for i in range(8):
        width, height = sizes[i % len(sizes)]
        for name, channels in (("image", 3), ("product", 4)):
            pixels = noise.integers(0, 256, (height, width, channels), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    file = folder / "ads.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["key", "image", "product", "title"])
        writer.writerows([f"ad{i}", f"image{i % 8}.png", f"product{i % 8}.png", f"chair {i}"] for i in range(rows))
    return file


def run(ads: Ads, out: Path, batch_size: int) -> list[dict[str, str]]:
    output = RunOutput(out, {"batch_size": batch_size}, resume=True)
    score(Warmth(), ads, output, batch_size, torch.device("cpu"))
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_stand_in_the_order_of_the_table_whatever_batch_and_size(tmp_path: Path) -> None:
    file = fill(tmp_path, 21, sizes=((16, 12), (9, 9), (5, 7)))
    expected = []
    for i in range(21):
        pixels = np.asarray(Image.open(tmp_path / f"image{i % 8}.png"), np.float64) / 255
        expected.append((f"ad{i}", pixels[..., 0].mean() - pixels[..., 2].mean(), pixels[..., 0].mean()))
    for batch_size in (1, 4, 64):
        rows = run(Table(file, Warmth.fields), tmp_path / f"{batch_size}.csv", batch_size)
        assert [row["key"] for row in rows] == [key for key, _, _ in expected]
        assert list(rows[0]) == ["key", "value", "red"]
        got = np.array([[float(row["value"]), float(row["red"])] for row in rows])
        np.testing.assert_allclose(got, np.array([values for _, *values in expected]), atol=1e-6)


def test_jsonl_carries_float32_exactly(tmp_path: Path) -> None:
    rows = run(Table(fill(tmp_path, 8), Warmth.fields), tmp_path / "scores.jsonl", 8)
    ads = Table(tmp_path / "ads.csv", Warmth.fields)
    images = torch.from_numpy(np.stack([ads.read(row)["image"] for row in ads])).float().div(255)
    batch = {"title": [""] * 8}
    value = Warmth()(images, batch).value
    assert torch.equal(torch.tensor([row["value"] for row in rows]), value)


def test_bad_rows_are_listed_and_the_rest_is_scored(tmp_path: Path) -> None:
    file = fill(tmp_path, 10)
    (tmp_path / "image1.png").write_bytes(b"")
    with file.open("a") as handle:
        handle.write("ad0,image2.png,product2.png,again\nx,image2.png,product2.png,nan\n")
    rows = run(Table(file, Warmth.fields), tmp_path / "scores.csv", 3)
    assert [row["key"] for row in rows] == [f"ad{i}" for i in range(10) if i not in (1, 9)]
    with (tmp_path / "scores.csv.failed.csv").open(newline="") as errors:
        bad = [(int(row["row"]), row["key"], Path(row["file"]).name, row["reason"]) for row in csv.DictReader(errors)]
    assert [row[:3] for row in bad] == [
        (2, "ad1", "image1.png"),
        (10, "ad9", "image1.png"),
        (11, "ad0", ""),
        (12, "x", ""),
    ]
    assert [word in bad[i][3] for i, word in enumerate(("identify", "identify", "row 1", "nan"))] == [True] * 4


def test_a_picture_above_the_largest_size_is_reduced_with_all_that_lies_on_it(tmp_path: Path) -> None:
    file = fill(tmp_path, 2, sizes=((40, 20), (10, 10)))
    ads = Table(file, frozenset({"product", "title"}))
    large, small = (ads.read(row, 20) for row in ads)
    assert large["image"].shape == (3, 10, 20)
    assert large["product"].shape == (4, 10, 20)
    assert small["image"].shape == (3, 10, 10)
    reduced = Image.open(tmp_path / "image0.png").resize((20, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(large["image"], np.asarray(reduced).transpose(2, 0, 1))


def test_a_folder_is_scored_and_an_empty_one_too(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "title").mkdir()
    assert run(Folder(tmp_path, Warmth.fields), tmp_path / "none.csv", 2) == []
    for name in "ba":
        Image.new("RGB", (4, 4), "red").save(tmp_path / f"image/{name}.png")
        (tmp_path / f"title/{name}.txt").write_text(name)
    rows = run(Folder(tmp_path, Warmth.fields), tmp_path / "scores.csv", 2)
    assert rows == [{"key": "a", "value": "1.0", "red": "1.0"}, {"key": "b", "value": "1.0", "red": "1.0"}]


def words(reward: dict[str, str], *more: str) -> list[str]:
    return [
        *(f"reward.{key}={value}" for key, value in reward.items()),
        "reward=rfnet",
        "device=cpu",
        "threads=1",
        *more,
    ]


def command(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    """The exit code of `python -m src.score` with these words, run in this process."""
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    try:
        return main()
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.rfnet(tmp_path_factory.mktemp("nets"))


def test_killed_and_resumed_the_command_leaves_the_files_of_an_unbroken_run(
    tmp_path: Path, nets: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fill(tmp_path, 120, sizes=((16, 12),) * 7 + ((9, 9),))
    text = file.read_text().replace("image3.png,product3.png,chair 3\n", "none.png,product3.png,chair 3\n")
    file.write_text(text.replace("ad100,", "ad1,"))
    out = tmp_path / "killed" / "scores.csv"
    arguments = words(nets, f"table={file}", "batch_size=4")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        run = [sys.executable, "-m", "src.score", *arguments, f"out={out}"]
        process = subprocess.Popen(run, cwd=CONF.parent, stdout=stderr, stderr=stderr)
    while not out.exists() or out.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, f"it ended before it could be killed: {log.read_text()}"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.read_bytes().count(b"\n") < 110

    assert command(monkeypatch, [*arguments, f"out={out}"]) == 1
    assert command(monkeypatch, [*arguments, f"out={tmp_path / 'whole' / 'scores.csv'}"]) == 1
    for name in ("scores.csv", "scores.csv.failed.csv", "scores.csv.run.json"):
        assert (out.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with out.open(newline="") as scores:
        keys = [row["key"] for row in csv.DictReader(scores)]
    assert keys == [f"ad{i}" for i in range(120) if i not in (3, 100)]

    capsys.readouterr()
    before = out.stat().st_mtime_ns
    assert command(monkeypatch, [*arguments, f"out={out}"]) == 1, "a third run has nothing to do but to say so"
    said = capsys.readouterr().out
    assert "118 scored" in said
    assert "row 4 (ad3)" in said
    assert "none.png: no such file" in said
    assert "row 101 (ad1): duplicate key, first used in row 2" in said
    assert out.stat().st_mtime_ns == before


def test_the_command_scores_as_the_reward_does_and_tells_what_changed(
    tmp_path: Path, nets: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = fill(tmp_path, 6), tmp_path / "scores.csv"
    arguments = words(nets, f"table={file}", f"out={out}", "batch_size=3")
    assert command(monkeypatch, arguments) == 0
    reward = RFNetReward(**nets)
    ads = Table(file, reward.fields)
    batch = to_float(collate([ads.read(row) for row in ads]))
    with out.open(newline="") as scores:
        rows = list(csv.DictReader(scores))
    assert list(rows[0]) == ["key", "value", *CLASSES]
    value = torch.tensor([float(row["value"]) for row in rows])
    torch.testing.assert_close(value, reward(batch["image"], batch).value, atol=1e-5, rtol=1e-5)

    written = out.read_bytes()
    with file.open("a") as handle:
        handle.write("more,image1.png,product1.png,chair\n")
    for word, changed in (("batch_size=3", "table, files"), ("batch_size=2", "table, files, batch_size")):
        assert command(monkeypatch, [*arguments, word]) == 2
        assert f"a run that differs in {changed}; choose" in capsys.readouterr().err
    assert command(monkeypatch, [*arguments, "reward.maps=detached"]) == 2
    assert "differs in table, files, reward;" in capsys.readouterr().err
    assert out.read_bytes() == written
    assert command(monkeypatch, [*arguments, "resume=false"]) == 0
    assert out.read_bytes().startswith(written)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["table=none.csv"], "none.csv: file not found"),
        ([], "either table=FILE or folder=DIR"),
        (["table=a.csv", "folder=b"], "either table=FILE or folder=DIR"),
        (["folder={tmp}"], "the subfolder image, product, title is missing"),
        (["table={tmp}/ads.csv"], "the column title is missing; the table has image, product"),
        (["table={tmp}/ads.csv", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["table={tmp}/ads.csv", "device=abacus"], "device=abacus"),
        (["reward.checkpoint={tmp}", "table={tmp}/ads.csv"], "config.yaml is missing"),
        (["tabel=ads.csv"], "nearest: table"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_exit_code_2(
    tmp_path: Path,
    nets: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    (tmp_path / "ads.csv").write_text("image,product\na.png,b.png\n")
    arguments = words(nets, f"out={tmp_path / 'scores.csv'}", *(word.format(tmp=tmp_path) for word in more))
    assert command(monkeypatch, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "scores.csv").exists()


def test_scores_of_files_that_changed_are_not_taken_for_done(
    tmp_path: Path, nets: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = fill(tmp_path, 2), tmp_path / "scores.csv"
    arguments = words(nets, f"table={file}", f"out={out}")
    assert command(monkeypatch, arguments) == 0
    before = out.read_bytes()
    Image.open(tmp_path / "image0.png").rotate(180).save(tmp_path / "image0.png")
    assert command(monkeypatch, arguments) == 2
    assert "a run that differs in files; choose another out, or resume=false" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert command(monkeypatch, [*arguments, "resume=false"]) == 0
    assert out.read_bytes() != before


def test_what_is_read_is_never_replaced(
    tmp_path: Path, nets: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fill(tmp_path, 2)
    failed = tmp_path / "scores.csv.failed.csv"
    for table, out in ((file, file), (file, tmp_path / "x/../ads.csv"), (failed, tmp_path / "scores.csv")):
        table.write_bytes(file.read_bytes())
        before = table.read_bytes()
        assert command(monkeypatch, words(nets, f"table={table}", f"out={out}", "resume=false")) == 2
        assert f"would overwrite the input {table}" in capsys.readouterr().err
        assert table.read_bytes() == before
    for field in ("image", "product", "title"):
        (tmp_path / "set" / field).mkdir(parents=True)
    assert command(monkeypatch, words(nets, f"folder={tmp_path / 'set'}", f"out={tmp_path / 'set/image/a.csv'}")) == 2
    assert "is inside folder=" in capsys.readouterr().err


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, nets: dict[str, Any]) -> None:
    arguments = words(nets, f"table={fill(tmp_path, 300)}", f"out={tmp_path / 'scores.csv'}", "batch_size=300")
    line = f"ulimit -f 4; exec '{sys.executable}' -m src.score {' '.join(map(repr, arguments))}"
    ended = subprocess.run(["bash", "-c", line], cwd=CONF.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == f"score: [Errno 27] File too large: '{tmp_path / 'scores.csv'}'"


def test_heat_maps_are_written_over_the_images(tmp_path: Path, monkeypatch, capsys, nets: dict[str, Any]) -> None:
    file = fill(tmp_path / "ads", 3)
    file.write_text(file.read_text().replace("title", "prompt").replace("ad1,", "rooms/ad1.png,"))
    made, maps = tiny.rahf(tmp_path / "nets"), tmp_path / "maps"
    arguments = ["reward=rahf", f"reward.checkpoint={made['checkpoint']}", f"table={file}", "device=cpu", "threads=1"]
    arguments += [f"out={tmp_path / 'scores.csv'}", f"maps={maps}"]
    assert command(monkeypatch, arguments) == 0
    assert sorted(str(path.relative_to(maps)) for path in maps.rglob("*.png")) == [
        f"{name}/{key}.png" for name in ("implausibility", "misalignment") for key in ("ad0", "ad2", "rooms/ad1")
    ]
    assert Image.open(maps / "implausibility/ad0.png").size == (16, 12)
    reward = build(OmegaConf.merge(OmegaConf.load(CONF / "reward" / "rahf.yaml"), made))
    record = next(iter(Table(file, frozenset({"prompt"}))))
    image = torch.from_numpy(Table(file, frozenset({"prompt"})).read(record)["image"]).float() / 255
    with torch.no_grad():
        heat = reward(image[None], {"prompt": ["chair 0"]}).maps["implausibility"][0]
    drawn = np.asarray(Image.open(maps / "implausibility/ad0.png")).transpose(2, 0, 1) / 255
    assert np.abs(drawn - overlay(image, heat).numpy()).max() < 0.02
    assert command(monkeypatch, [*arguments, "resume=false"]) == 0
    assert command(monkeypatch, [*arguments[:-2], f"out={tmp_path / 'other.csv'}", f"maps={maps}"]) == 2
    assert "maps is not empty" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()
    assert command(monkeypatch, words(nets, f"table={fill(tmp_path / 'other', 1)}", f"maps={tmp_path / 'none'}")) == 2
    assert "RFNetReward has no heat maps" in capsys.readouterr().err
    file.write_text(file.read_text().replace("rooms/ad1.png,", "../ad1.png,"))
    assert command(monkeypatch, [*arguments[:-2], f"out={tmp_path / 'b.csv'}", f"maps={tmp_path / 'b'}"]) == 2
    assert "the key '../ad1.png' points outside" in capsys.readouterr().err


def test_heat_maps_that_are_missing_are_written_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fill(tmp_path / "ads", 6)
    file.write_text(file.read_text().replace("title", "prompt"))
    (tmp_path / "ads/image4.png").write_bytes(b"")
    out, maps = tmp_path / "scores.csv", tmp_path / "maps"
    arguments = ["reward=rahf", f"reward.checkpoint={tiny.rahf(tmp_path / 'nets')['checkpoint']}", f"table={file}"]
    arguments += ["device=cpu", "threads=1", "batch_size=2", f"out={out}", f"maps={maps}"]

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:  # ends after the maps of the first chunk, before its scores
        broken.setattr("src.score._write", full_disk)
        assert command(broken, arguments) == 2
    assert (maps / "misalignment/ad1.png").is_file()
    assert not out.read_bytes()
    assert command(monkeypatch, arguments) == 1
    made = {path: np.asarray(Image.open(path)).astype(int) for path in sorted(maps.rglob("*.png"))}
    assert [path.stem for path in made if path.parent.name == "misalignment"] == ["ad0", "ad1", "ad2", "ad3", "ad5"]
    written, kept = out.read_bytes(), maps / "implausibility/ad0.png"
    before = kept.stat().st_mtime_ns
    for lost in ("implausibility/ad3.png", "misalignment/ad5.png"):
        (maps / lost).unlink()
    assert command(monkeypatch, arguments) == 1
    assert sorted(maps.rglob("*.png")) == list(made)
    assert all(np.abs(np.asarray(Image.open(path)) - pixels).max() <= 1 for path, pixels in made.items())
    assert (out.read_bytes(), kept.stat().st_mtime_ns) == (written, before)
