"""RichHF-18K: a small release of known feedback, images from each source, and each thing that can be wrong."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from src.build import build
from src.config import compose
from src.data.batch import HEAT_MAPS, SCORES, collate, to_float
from src.data.pickapic import save_image
from src.data.richhf import RichHF, write_example
from src.data.richhf_format import FILES, SCORE_FEATURES, png, serialized, write_prompts
from src.data.richhf_parquet import collect
from src.data.showroom.world import Showroom
from src.data.tfrecord import TFRecordFile, parse_example, serialize_example, write_tfrecord
from src.data.words import split_words
from src.models.augmentation import augmented

SIZE = 16


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image of one color, whose red tells the number."""
    file = io.BytesIO()
    Image.new("RGB", (24, 32), (10 * number, 100, 200)).save(file, kind)
    return file.getvalue()


def feedback(number: int, split: str, labels: str = "1 0 1", **change: list[Any]) -> bytes:
    """A record: implausible in the left half, misaligned in the upper; scores tell the number."""
    left, top = np.zeros((2, 512, 512), np.uint8)
    left[:, :256], top[:256] = 85 * (number % 4), 255
    scores = [number / 12, (number + 1) / 12, (number + 2) / 12, (number % 5) / 4]
    data = serialized(f"{split}/uid-{number}.png", [png(left), png(top)], scores, labels)
    return serialize_example({**parse_example(data), **change})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: 0 to 3, dev: 4, test: 5, 6."""
    folder = tmp_path / "richhf"
    (folder / "images").mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("val", [4]), ("test", [5, 6])):
        write_tfrecord(folder / FILES[split], [feedback(number, split) for number in numbers])
    for number in range(7):
        (folder / f"images/uid-{number}.png").write_bytes(picture(number))
    write_prompts(folder / "prompts.jsonl", {f"uid-{number}": f"cat {number}, yellow" for number in range(7)})
    return folder


def source(root: Path, **words: Any) -> RichHF:
    return RichHF(str(root), size=SIZE, **words)


def rewrite(root: Path, number: int, data: bytes) -> None:
    """Replaces a training record."""
    write_tfrecord(root / FILES["train"], [data if n == number else feedback(n, "train") for n in range(4)])


def listed(root: Path) -> list[tuple[str, int, str, str]]:
    rows = map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())
    return [(Path(row["file"]).name, row["line"], row["key"], row["reason"]) for row in rows]


def test_fields_match_the_showroom(root):
    data = source(root)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [4, 1, 2]
    record = data.split("train")[2]
    assert (record["key"], record["prompt"], record["aligned_words"]) == ("train/uid-2.png", "cat 2, yellow", [1, 0, 1])
    assert record["image"].shape == (3, SIZE, SIZE)
    assert record["image"][:, 3, 3].tolist() == [20, 100, 200]
    maps = dict(zip(HEAT_MAPS, record["heatmaps"], strict=True))
    assert (maps["implausibility"][:, :7] == 170).all()
    assert (maps["implausibility"][:, 9:] == 0).all()
    assert (maps["misalignment"][:7] == 255).all()
    assert (maps["misalignment"][9:] == 0).all()
    # plausibility, alignment, aesthetics, overall; the features are artifact, misalignment, aesthetics, overall
    assert record["scores"].tolist() == pytest.approx([2 / 12, 3 / 12, 4 / 12, 2 / 4])
    world = Showroom({"test": 2}, SIZE, holds=sorted(RichHF.fields))
    assert data.fields == world.fields
    ours, theirs = collate([record, record]), collate([world.split("test")[0]] * 2)
    kinds = [
        {k: (v.dtype, v.shape[:2]) for k, v in b.items() if k in ("image", "heatmaps", "scores")}
        for b in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]
    assert ours["aligned_words"].dtype == theirs["aligned_words"].dtype


def test_example_folder_through_the_data_module(tmp_path):
    folder = write_example(str(tmp_path / "example"), count=2, size=32)
    config = compose("fit", ["model=rfnet", "data=richhf", f"data.source.folder={folder}", "data.source.size=32"])
    data = build(config.data)
    world = Showroom({"test": 2}, 32, holds=sorted(RichHF.fields)).split("test")
    batch, truth = next(iter(data.batches("test"))), to_float(collate([world[index] for index in range(2)]))
    assert batch.pop("key") == [f"test/{key}.png" for key in truth.pop("key")]
    for name, value in truth.items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value


def test_jpeg_maps_and_exif_orientation(root):
    file = io.BytesIO()
    Image.new("L", (512, 512), 128).save(file, "JPEG")
    rewrite(root, 1, feedback(1, "train", artifact_map=[file.getvalue()]))
    (root / "images/uid-1.png").unlink()
    upright = Image.new("RGB", (32, 24))
    upright.paste((255, 0, 0), (0, 0, 16, 24))  # red on the left; turned by 90 degrees, at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(root / "images/uid-1.JPG", exif=exif, quality=100)
    record = source(root).split("train")[1]
    assert (abs(record["heatmaps"][0].astype(int) - 128) <= 1).all()
    assert record["image"][0, :6].min() > 200
    assert record["image"][0, 10:].max() < 50


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a well-known cat's (red) hat", 5),  # hyphen, apostrophe and brackets do not cut
        ('"Stop!" she said; why?no: 3.5', 7),
        ("  a ,, b . ", 2),
        ("cat\tdog", 1),
        ("", 0),
    ],
)
def test_words_follow_the_rule_of_the_release(root, prompt, count):
    assert len(split_words(prompt)) == count
    write_prompts(root / "prompts.jsonl", {f"uid-{n}": prompt if n == 3 else "cat 0, yellow" for n in range(7)})
    rewrite(root, 3, feedback(3, "train", " ".join("0" * count)))
    assert source(root).split("train")[3]["aligned_words"] == [0] * count
    rewrite(root, 3, feedback(3, "train", " ".join("0" * (count + 1))))
    with pytest.raises(ValueError, match=rf"record 4, 'train/uid-3\.png': {count + 1} labels for the {count} words"):
        source(root)


def without(root: Path, number: int) -> None:
    """Takes the prompt of an image away."""
    write_prompts(root / "prompts.jsonl", {f"uid-{n}": "a b c" for n in range(7) if n != number})


FAULTS: dict[str, tuple[str | dict[str, list[Any]] | Callable[[Path], object], str]] = {
    "more labels": ("1 1 1 0", "4 labels for the 3 words of 'cat 1, yellow'"),
    "other label": ("1 2 0", "prompt_misalignment_label is '1 2 0', not of 0 and 1"),
    "1 to 5": ({"overall_score": [3.0]}, r"overall_score is 3, not in \[0, 1\]"),
    "nan": ({"artifact_score": [float("nan")]}, "artifact_score is nan, not"),
    "no score": ({"overall_score": []}, "overall_score is not one value of type float"),
    "two scores": ({"overall_score": [0.5, 1.0]}, "overall_score is not one value of type float"),
    "a whole score": ({"overall_score": [1]}, "overall_score is not one value of type float"),
    "no image": (lambda root: (root / "images/uid-1.png").unlink(), "nothing of this uid in .*/richhf/images"),
    "no prompt": (lambda root: without(root, 1), r"nothing of this uid in .*/richhf/prompts\.jsonl"),
    "again": (lambda root: rewrite(root, 1, feedback(0, "dev")), r"it is also record 1 of train\.tfrecord"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_records_raise_or_are_skipped(root, name):
    change, told = FAULTS[name]
    if callable(change):
        change(root)
    else:
        words = {"labels": change} if isinstance(change, str) else change
        rewrite(root, 1, feedback(1, "train", **words))  # pyright: ignore[reportArgumentType]
    key = "dev/uid-0.png" if name == "again" else "train/uid-1.png"
    with pytest.raises(ValueError, match=rf"train\.tfrecord, record 2, '{key}': {told}"):
        source(root)
    rows = source(root, on_error="skip").split("train")
    ((*place, reason),) = listed(root)
    assert place == ["train.tfrecord", 2, key]
    assert re.match(told, reason)
    assert [rows[index]["key"] for index in range(len(rows))] == [f"train/uid-{number}.png" for number in (0, 2, 3)]


def test_damaged_records_raise_or_are_skipped(root):
    file = root / FILES["train"]
    second = int(TFRecordFile(file).offsets[1])
    data = bytearray(file.read_bytes())
    data[second + 40] ^= 1
    file.write_bytes(data[:-1])  # and the last is truncated
    with pytest.raises(ValueError, match=r"train\.tfrecord, record 4, at byte \d+: the file ends after"):
        source(root)
    kept = source(root, on_error="skip", quarantine=str(root / "bad.jsonl")).split("train")
    assert [kept[index]["key"] for index in range(len(kept))] == ["train/uid-0.png", "train/uid-2.png"]
    rows = list(map(json.loads, (root / "bad.jsonl").read_text().splitlines()))
    assert [(row["line"], row["key"]) for row in rows] == [(2, ""), (4, "")]
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"train\.tfrecord, record 2, at byte {second}: the checksum of its data"):
        source(root)


@pytest.mark.parametrize("what", ["image", "map"])
def test_undecodable_images_raise_or_are_replaced_in_training(root, what):
    if what == "image":
        for number in (1, 5):
            (root / f"images/uid-{number}.png").write_bytes(picture(number)[:60])
    else:
        rewrite(root, 1, feedback(1, "train", misalignment_map=[b"no image"]))
        write_tfrecord(root / FILES["test"], [feedback(5, "test", artifact_map=[b"\x89PNG"]), feedback(6, "test")])
    told = r"images/uid-1\.png: " if what == "image" else "misalignment_map: cannot identify image file"
    with pytest.raises(ValueError, match=rf"train\.tfrecord, record 2, 'train/uid-1\.png': .*{told}"):
        source(root).split("train")[1]
    data = source(root, on_error="skip")
    for _ in range(2):  # listed once
        assert data.split("train")[1]["key"] == "train/uid-2.png"
        assert [place for *place, _ in listed(root)] == [["train.tfrecord", 2, "train/uid-1.png"]]
    with pytest.raises(ValueError, match=r"test\.tfrecord, record 1, 'test/uid-5\.png': "):
        data.split("test")[0]


@pytest.mark.parametrize(("feature", "value"), [("overall_score", 0.0), ("artifact_score", 0.58333)])
def test_constant_scores_are_rejected(root, feature, value):
    for number in range(7, 17):
        (root / f"images/uid-{number}.png").write_bytes(picture(number))
    write_prompts(root / "prompts.jsonl", {f"uid-{number}": "a b c" for number in range(17)})
    change = {name: [number / 16] for number, name in enumerate(SCORE_FEATURES)}
    rows = [feedback(n, "dev", **{name: [n / 16] for name in change} | {feature: [value]}) for n in range(7, 17)]  # type: ignore[arg-type]
    write_tfrecord(root / FILES["val"], rows)
    with pytest.raises(ValueError, match=rf"dev\.tfrecord: {feature} is {value:g} in all 10 records: a bad copy"):
        source(root)


def test_incomplete_folders_are_rejected(root, tmp_path):
    with pytest.raises(ValueError, match=r"there is none of train\.tfrecord, dev\.tfrecord, test\.tfrecord\.$"):
        source(tmp_path / "no")
    (root / FILES["val"]).unlink()
    with pytest.raises(ValueError, match="No split 'val'; there is train, test"):
        source(root).split("val")
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet/train-0.parquet").touch()
    with pytest.raises(ValueError, match=r"there are no images .*`python -m src\.data\.richhf_parquet` copies"):
        source(root, images=str(tmp_path / "parquet"))
    (root / "images/uid-3.jpg").write_bytes(picture(3, "JPEG"))
    with pytest.raises(ValueError, match=r"uid-3\.(png|jpg) and .*uid-3\.(png|jpg) are both an image of uid-3"):
        source(root)
    (root / "images/uid-3.jpg").unlink()
    with (root / "prompts.jsonl").open("a") as file:
        file.write('{"key": "uid-3.png", "prompt": "another"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 8, 'uid-3\.png': an earlier line has another prompt"):
        source(root)
    with pytest.raises(ValueError, match="on_error=drop: choose raise or skip"):
        source(root, on_error="drop")
    write_tfrecord(root / FILES["test"], [])
    write_prompts(root / "prompts.jsonl", {f"uid-{number}": "a b c" for number in range(7)})
    with pytest.raises(ValueError, match=r"test\.tfrecord: no usable records"):
        source(root)


def test_images_and_prompts_in_other_places(root, tmp_path):
    (root / "images").rename(tmp_path / "elsewhere")
    lines = [f'train/uid-{number}.png,"cat {number}, yellow"' for number in range(7)]
    (tmp_path / "p.csv").write_text("\n".join(["key,prompt", *lines]))
    (root / "prompts.jsonl").unlink()
    data = source(root, images=str(tmp_path / "elsewhere"), prompts=str(tmp_path / "p.csv"))
    assert data.split("test")[1]["prompt"] == "cat 6, yellow"


def pickapic(folder: Path) -> None:
    """Two files of two row groups: uid-n and uid-(n+1) in row n; others between them."""
    folder.mkdir()
    for part in (0, 1):
        rows = [n for n in range(6) if n % 2 == part]
        uids = [[f"uid-{n + side}" if side else f"uid-{n}" for n in rows] + ["other"] for side in (0, 1)]
        images = [[picture(n + side, "JPEG") for n in rows] + [b"no image"] for side in (0, 1)]
        captions = [f"cat {n}, yellow" for n in rows] + ["nothing"]
        names = ("image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "caption", "user_id")
        table = pa.table(dict(zip(names, (*uids, *images, captions, [0] * len(captions)), strict=True)))
        pq.write_table(table, folder / f"train-0000{part}-of-00002.parquet", row_group_size=2)


def test_collect_from_pick_a_pic_in_parts(root, tmp_path, capsys):
    for file in (root / "images").iterdir():
        file.unlink()
    (root / "prompts.jsonl").unlink()
    pickapic(tmp_path / "pickapic")
    collect(str(tmp_path / "pickapic/train-00000-of-00002.parquet"), str(root))
    assert "6 of 7 images are there" in capsys.readouterr().out
    assert not (root / "images/other.jpg").exists()
    before = (root / "images/uid-0.jpg").stat().st_mtime_ns
    collect(str(tmp_path / "pickapic"), str(root))
    assert "7 of 7 images are there" in capsys.readouterr().out
    assert (root / "images/uid-0.jpg").stat().st_mtime_ns == before
    assert (root / "images/uid-6.jpg").read_bytes() == picture(6, "JPEG")
    record = source(root).split("test")[1]
    assert record["prompt"] == "cat 5, yellow"  # of the pair that it is the second of
    assert abs(int(record["image"][0, 3, 3]) - 60) <= 2


def mirror(folder: Path, **change: Any) -> None:
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("validation", [4]), ("test", [5, 6])):
        rows = []
        for number in numbers:
            features = parse_example(feedback(number, split))
            row: dict[str, Any] = {name: values[0] for name, values in features.items()}
            row |= {"filename": str(row["filename"], "utf-8"), "caption": f"cat {number}, yellow"}
            row |= {"prompt_misalignment_label": str(row["prompt_misalignment_label"], "utf-8")}
            row |= {"image": {"bytes": picture(number, "JPEG"), "path": None}}
            rows.append(row | {name: make(row[name]) for name, make in change.items()})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet", row_group_size=2)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"artifact_map": lambda data: {"bytes": data, "path": "a.png"}, "overall_score": lambda score: [score]},
        {"prompt_misalignment_label": lambda text: [int(label) for label in text.split()]},
        {"prompt_misalignment_label": str.encode, "image": lambda image: image["bytes"]},
    ],
)
def test_collect_from_a_joined_mirror(root, tmp_path, change):
    mirror(tmp_path / "mirror/data", **change)
    out = collect(str(tmp_path / "mirror"), str(tmp_path / "out"))
    for split in FILES:
        ours, theirs = source(out).split(split), source(root).split(split)
        for index in range(len(theirs)):
            got, want = ours[index], theirs[index]
            for name in ("prompt", "aligned_words"):
                assert got[name] == want[name]
            for name in ("heatmaps", "scores"):
                assert np.array_equal(got[name], want[name])
            assert (abs(got["image"].astype(int) - want["image"]) <= 3).all()
    with pytest.raises(ValueError, match=r"test\.tfrecord exists; choose another folder"):
        collect(str(tmp_path / "mirror"), str(out))


def test_unsuitable_parquet_files_are_rejected(root, tmp_path):
    with pytest.raises(ValueError, match="there are no parquet files"):
        collect(str(tmp_path / "no"), str(root))
    file = tmp_path / "train.parquet"
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"train\.parquet: no parquet file"):
        collect(str(file), str(root))
    pq.write_table(pa.table({"image": [b""], "filename": ["a"]}), file)
    with pytest.raises(ValueError, match=r"train\.parquet: it has neither Pick-a-Pic's .*, but filename, image\."):
        collect(str(file), str(root))
    pickapic(tmp_path / "pickapic")
    with pytest.raises(ValueError, match=r"there is none of train\.tfrecord"):
        collect(str(tmp_path / "pickapic"), str(tmp_path / "empty"))
    mirror(tmp_path / "bad", artifact_map=lambda data: [0.0, 1.0])
    with pytest.raises(
        ValueError, match=r"-00000-of-00001\.parquet, row 0: not a record .*an image is list, not bytes"
    ):
        collect(str(tmp_path / "bad"), str(tmp_path / "out"))
    mirror(tmp_path / "gif", image=lambda image: b"GIF89a")
    with pytest.raises(ValueError, match=r"row 0, 'uid-\d': the image is neither PNG nor JPEG nor WebP"):
        collect(str(tmp_path / "gif"), str(tmp_path / "out"))
    (tmp_path / "gif/test-00000-of-00001.parquet").rename(tmp_path / "gif/part.parquet")
    with pytest.raises(ValueError, match=r"part\.parquet: cannot infer the split"):
        collect(str(tmp_path / "gif"), str(tmp_path / "out"))


def test_missing_pyarrow_is_reported(root, tmp_path, monkeypatch):
    pickapic(tmp_path / "pickapic")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install -e '\.\[richhf\]'"):
        collect(str(tmp_path / "pickapic"), str(root))


def test_crop_and_flip_move_maps_with_the_image(root):
    """The image's first channel is drawn as its first map: they must stay equal, and no score or label changes."""
    rows = source(root).split("train")
    batch = to_float(collate([rows[index % 4] for index in range(32)]))
    ramp = torch.linspace(0, 1, SIZE)
    batch["image"][:, 0] = ramp[:, None] * ramp
    batch["heatmaps"][:, 0] = batch["image"][:, 0]
    torch.manual_seed(0)
    new = augmented(batch, flip=0.5, colour=0.0, crop=0.5)
    torch.testing.assert_close(new["image"][:, 0], new["heatmaps"][:, 0])
    same = [
        any(torch.equal(a, b) for b in (old, old.flip(-1))) for a, old in zip(new["image"], batch["image"], strict=True)
    ]
    assert 5 < sum(same) < 27
    assert torch.equal(new["scores"], batch["scores"])
    assert torch.equal(new["aligned_words"], batch["aligned_words"])
    plain = augmented(batch, flip=0.0, colour=0.0, crop=0.5)
    right = plain["image"][:, 0, :, SIZE // 2 :].mean(dim=(1, 2)) - plain["image"][:, 0, :, : SIZE // 2].mean(
        dim=(1, 2)
    )
    assert (right > 0).all()  # no flip unless asked for


def test_crops_cover_80_to_100_percent():
    ramp = torch.linspace(0.5, 99.5, 100) / 100  # a pixel's place
    image = torch.stack([ramp.expand(100, 100), ramp[:, None].expand(100, 100), ramp.expand(100, 100)]).expand(
        400, -1, -1, -1
    )
    torch.manual_seed(1)
    new = augmented({"image": image}, flip=0.0, colour=0.0, crop=1.0)["image"]
    across = (new[:, 0, 0, 90] - new[:, 0, 0, 10]) / 0.8
    down = (new[:, 1, 90, 0] - new[:, 1, 10, 0]) / 0.8
    torch.testing.assert_close(across, down, atol=1e-4, rtol=0)
    assert across.min() > 0.8 - 1e-4
    assert across.min() < 0.81
    assert across.max() > 0.99
    assert across.max() < 1 + 1e-4
    left = new[:, 0, 0, 50] - 0.5 * across
    assert left.min() > -0.01
    assert left.max() < 0.21
    assert torch.equal(augmented({"image": image}, 0.0, 0.0, crop=0.0)["image"], image)


def test_order_of_the_scores():
    assert SCORES == ("plausibility", "alignment", "aesthetics", "overall")
    assert [name.split("_")[0] for name in SCORE_FEATURES] == ["artifact", "misalignment", "aesthetics", "overall"]


def test_a_uid_that_is_a_path_writes_nothing_outside_the_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("../a", "/a", "b/a", ""):
        with pytest.raises(ValueError, match=r"x\.parquet, row 1, '.*': the uid is no file name"):
            save_image(tmp_path / "images", name, b"\x89PNG", "x.parquet, row 1")
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]
