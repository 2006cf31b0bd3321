"""Preferences: a small folder in each format, whole groups in every batch, and each thing that can be wrong."""

import io
import json
from collections import Counter
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
from src.data.batch import collate
from src.data.module import AdData
from src.data.pickapic import collect
from src.data.preference_formats import Choice, hpd_v1, hpd_v2, imagereward, pickapic
from src.data.preferences import Preferences, write_example
from src.runtime.system import System

SIZE = 16


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image of one color, whose red tells the number, of a shape of its own."""
    file = io.BytesIO()
    Image.new("RGB", (20 + 3 * (number % 5), 24), (10 * (number % 25), 100, 200)).save(file, kind)
    return file.getvalue()


def entry(number: int, size: int, chosen: Any = 0) -> dict[str, Any]:
    """A group of HPD v1."""
    return {
        "human_preference": chosen, "prompt": f"a cat, {number}", "id": number, "user_hash": "x", "contain_name": False,
        "file_path": [f"{number}_{i}.png" for i in range(size)],
    }  # fmt: skip


def write(root: Path, name: str, entries: Any, images: str = ".") -> None:
    """Writes a JSON file and the images that it names."""
    (root / name).write_text(json.dumps(entries))
    paths = [path for e in entries for path in e.get("file_path") or e.get("image_path") or e.get("generations") or []]
    for number, path in enumerate(dict.fromkeys(paths)):
        file = root / images / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """HPD v1: groups of 2, 3, 4, 2, ... to train on, one of 3 to test on."""
    folder = tmp_path / "hpd"
    folder.mkdir()
    write(folder, "preference_train.json", [entry(n, 2 + n % 3, n % 2) for n in range(9)], "preference_images")
    write(folder, "preference_test.json", [entry(100, 3, 2)], "preference_images")
    return folder


def source(root: Path, **words: Any) -> Preferences:
    files = {"train": "preference_train.json", "test": "preference_test.json"}
    arguments = {"format": "hpd_v1", "files": files, "images": "preference_images", "size": SIZE, **words}
    return Preferences(folder=str(root), **arguments)


def rewrite(root: Path, change: dict[str, Any]) -> None:
    """Changes the second group to train on; None: removes the key."""
    entries = json.loads((root / "preference_train.json").read_text())
    entries[1] = {name: value for name, value in (entries[1] | change).items() if value is not None}
    (root / "preference_train.json").write_text(json.dumps(entries))


def listed(root: Path) -> list[tuple[str, int, str, str]]:
    rows = map(json.loads, (root / "quarantine.jsonl").read_text().splitlines())
    return [(Path(row["file"]).name, row["line"], row["key"], row["reason"]) for row in rows]


def test_hpd_v1_has_the_index_of_the_choice(root):
    rows = source(root).split("train")
    assert len(rows) == 27
    assert rows.groups.tolist() == np.repeat(np.arange(9), [2, 3, 4] * 3).tolist()
    records = [rows[index] for index in range(27)]
    assert [record["key"] for record in records] == rows.keys()
    assert (rows.keys()[2], rows.keys()[26]) == ("preference_train/2/0", "preference_train/9/3")
    assert [record["group"] for record in records] == rows.groups.tolist()
    assert [record["chosen"] for record in records[:9]] == [1, 0, 0, 1, 0, 1, 0, 0, 0]
    assert [record["rank"] for record in records[:9]] == [1, 2, 2, 1, 2, 1, 2, 2, 2]
    assert {record["weight"] for record in records} == {1}
    assert records[3]["prompt"] == "a cat, 1"
    batch = collate(records)
    assert set(batch) == Preferences.fields
    assert batch["image"].shape == (27, 3, SIZE, SIZE)
    assert batch["image"][:, 0, 8, 8].tolist() == [10 * (number % 25) for number in range(27)]
    assert len(source(root).split("val")) == 0


@pytest.mark.parametrize("order", [range(27), range(26, -1, -1), [5, 20, 6, 3, 20]])
def test_records_do_not_depend_on_the_order_in_which_they_are_read(root, order):
    rows, fresh = source(root).split("train"), source(root).split("train")
    for index in order:
        record = rows[index]
        record["prompt"] = "changed"  # by a caller, which must not change what others read
        assert fresh[index]["key"] == record["key"] == rows.keys()[index]
        assert rows[index]["prompt"] == fresh[index]["prompt"] != "changed"
    with pytest.raises(IndexError):
        rows[27]


def test_images_are_padded_as_in_training_or_cropped(root):
    padded, cropped = (source(root, fit=fit).split("train")[5]["image"] for fit in ("pad", "crop"))  # 20x24
    assert (padded[:, :, [0, 15]] == 0).all()
    assert (padded[1, :, 2:14] == 100).all()
    assert (cropped[1] == 100).all()


def test_paths_may_be_relative_to_the_file(root):
    entries = json.loads((root / "preference_train.json").read_text())
    for e in entries:
        e["file_path"] = [f"preference_images/{path}" for path in e["file_path"]]
    (root / "preference_train.json").write_text(json.dumps(entries))
    assert len(source(root).split("train")) == 27


def test_a_share_of_the_prompts_validates(root):
    write(root, "preference_train.json", [entry(n // 2, 2 + n % 3) for n in range(200)], "preference_images")
    data = source(root, val=0.3)
    prompts = {split: {choice.prompt for choice in data.choices[split]} for split in ("train", "val")}
    assert not prompts["train"] & prompts["val"]
    assert 15 < len(prompts["val"]) < 45
    assert len(data.choices["train"]) + len(data.choices["val"]) == 200
    assert {choice.file.name for choice in data.choices["val"]} == {"preference_train.json"}
    assert data.choices["val"] == source(root, val=0.3).choices["val"]


def test_hpd_v2_has_pairs_to_train_on_and_rankings_to_test_on(tmp_path):
    pairs = [
        {"human_preference": [0, 1], "prompt": "a", "file_path": ["0.png", "1.png"]},
        {"human_preference": [1, 0], "prompt": "a", "file_path": ["0.png", "2.png"]},
        {"human_preference": [1, 1], "prompt": "b", "file_path": ["3.png", "1.png"]},
    ]
    ranks = {"prompt": "c", "image_path": ["0.png", "1.png", "2.png", "3.png"], "rank": [3, 2, 2, 4]}
    write(tmp_path, "train.json", pairs, "train")
    write(tmp_path, "test.json", [ranks | {"raw_annotations": [{"rank": [1, 2, 3, 4], "user_hash": "x"}]}], "test")
    config = compose("fit", ["data=hpd_v2", f"data.source.folder={tmp_path}", "data.source.val=0"]).data.source
    rows = build(config).split("train")
    assert [rows[i]["chosen"] for i in range(6)] == [0, 1, 1, 0, 0.5, 0.5]
    assert [rows[i]["rank"] for i in range(6)] == [2, 1, 1, 2, 1, 1]
    rows = build(config).split("test")
    assert [(rows[i]["chosen"], rows[i]["rank"]) for i in range(4)] == [(0, 3), (0.5, 1), (0.5, 1), (0, 4)]
    assert rows[0]["image"].shape == (3, 224, 224)


def test_imagereward_has_rankings_with_ties(tmp_path):
    entries = [
        {"id": "5658-40", "prompt": "a", "generations": [f"p/{i}.webp" for i in range(4)], "ranking": [1, 2, 5, 3]},
        {"id": "5664-15", "prompt": "b", "generations": [f"q/{i}.webp" for i in range(5)], "ranking": [4, 2, 2, 3, 2]},
    ]
    write(tmp_path, "test.json", entries, "test_images")
    rows = build(compose("fit", ["data=imagereward", f"data.source.folder={tmp_path}"]).data.source).split("test")
    assert [rows[i]["rank"] for i in range(9)] == [1, 2, 4, 3, 5, 1, 1, 4, 1]
    assert [rows[i]["chosen"] for i in range(9)] == pytest.approx([1, 0, 0, 0, 0, 1 / 3, 1 / 3, 0, 1 / 3])


def pair(number: int, **change: Any) -> dict[str, Any]:
    """A row of Pick-a-Pic."""
    return {
        "are_different": True, "caption": f"a cat {number // 2}", "has_label": True, "image_0_uid": f"u{number}",
        "image_1_uid": f"u{number + 1}", "jpg_0": picture(number, "JPEG"), "jpg_1": picture(number + 1, "JPEG"),
        "label_0": 1.0, "label_1": 0.0, "num_example_per_prompt": 1, **change,
    }  # fmt: skip


def write_pairs(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=2)


def test_pickapic_has_ties_weights_and_pairs_without_a_label(tmp_path):
    tie, many = {"label_0": 0.5, "label_1": 0.5}, {"label_0": 0.0, "label_1": 1.0, "num_example_per_prompt": 4}
    unlabelled = {"has_label": False, "label_0": None, "label_1": None}
    write_pairs(tmp_path / "data", "train-00000-of-00002", [pair(0), pair(2, **unlabelled), pair(1, **tie)])
    write_pairs(tmp_path / "data", "train-00001-of-00002", [pair(5, **many)])
    write_pairs(tmp_path / "data", "validation_unique-00000-of-00001", [pair(7)])
    write_pairs(tmp_path / "data", "test_unique-00000-of-00001", [pair(9)])
    for _ in range(2):  # again: nothing is copied twice
        collect(str(tmp_path / "data"), str(tmp_path / "images"))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        f"u{number}.jpg" for number in (0, 1, 2, 5, 6, 7, 8, 9, 10)
    )
    data = build(compose("fit", ["data=pickapic", f"data.source.folder={tmp_path}"]).data.source)
    rows = data.split("train")
    records = [rows[index] for index in range(len(rows))]
    assert [record["chosen"] for record in records] == [1, 0, 0.5, 0.5, 0, 1]
    assert [record["rank"] for record in records] == [1, 2, 1, 1, 2, 1]
    assert [record["weight"] for record in records] == [1, 1, 1, 1, 0.25, 0.25]
    assert rows.keys()[2:] == [
        "train-00000-of-00002/3/0", "train-00000-of-00002/3/1", "train-00001-of-00002/1/0", "train-00001-of-00002/1/1",
    ]  # fmt: skip
    assert abs(int(records[4]["image"][0, 100, 100]) - 50) < 3
    assert [len(data.split(name)) for name in ("val", "test")] == [2, 2]


def test_a_pickapic_image_that_is_missing_and_a_label_that_is_none_are_named(tmp_path):
    def read(**change: Any) -> None:
        write_pairs(tmp_path / "data", "train-0", [pair(0), pair(1, **change)])
        Preferences("pickapic", str(tmp_path), {"train": "data/train-*.parquet"}, "images")

    write_pairs(tmp_path / "data", "train-0", [pair(0), pair(1)])
    with pytest.raises(ValueError, match=r"images: there are no images"):
        read()
    collect(str(tmp_path / "data"), str(tmp_path / "images"))
    read()
    for change, told in (
        ({"label_1": 0.5}, "label_0 and label_1 are 1.0 and 0.5, not shares with the sum 1"),
        ({"label_0": float("nan")}, "label_0 and label_1 are nan and 0.0, not shares"),
        ({"num_example_per_prompt": 0}, "num_example_per_prompt is 0, not a number from 1 on"),
        ({"caption": ""}, "caption is '', not a text"),
        ({"image_1_uid": "u9"}, r"images: no image of u9; `python -m src\.data\.pickapic` copies the images"),
    ):
        with pytest.raises(ValueError, match=rf"train-0\.parquet, entry 2: .*{told}"):
            read(**change)
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "data/train-0.parquet")
    with pytest.raises(ValueError, match=r"train-0\.parquet: the column image_0_uid, .* is missing; there is caption"):
        Preferences("pickapic", str(tmp_path), {"train": "data/train-*.parquet"}, "images")
    write_pairs(tmp_path / "data", "train-0", [pair(0, jpg_0=None), pair(1)])
    with pytest.raises(ValueError, match=r"train-0\.parquet, row group 0, row 0, 'u0': an image is NoneType"):
        collect(str(tmp_path / "data"), str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"human_preference": 3}, "human_preference is 3, not the index of one of 3 images"),
        ({"human_preference": -1}, "human_preference is -1, not the index"),
        ({"human_preference": True}, "human_preference is True, not the index"),
        ({"human_preference": [0, 1, 0]}, r"human_preference is \[0, 1, 0\], not the index of one of 3 images"),
        ({"human_preference": None}, "human_preference is None, not the index"),
        ({"file_path": []}, "file_path has no images: there is nothing to choose"),
        ({"file_path": ["0_0.png"]}, "file_path has 1 image: there is nothing to choose"),
        ({"file_path": None}, "file_path is None, not a list of images; it has human_preference, prompt, id"),
        ({"file_path": ["0_0.png", 3]}, "not a list of images"),
        ({"file_path": ["0_0.png", "x.png"]}, r"preference_images/x\.png: no such file"),
        ({"file_path": ["0_0.png", "empty.png"]}, r"preference_images/empty\.png: the file is empty"),
        ({"file_path": ["0_0.png", "a\0b.png"]}, "null byte|no such file"),
        ({"prompt": " "}, "prompt is ' ', not a text"),
        ({"prompt": None}, "prompt is None, not a text"),
        ({"prompt": "\ud83d"}, "surrogates not allowed"),
    ],
)
def test_a_bad_entry_is_named_or_listed(root, change, told):
    (root / "preference_images/empty.png").touch()
    rewrite(root, change)
    with pytest.raises(ValueError, match=rf"preference_train\.json, entry 2: .*({told})"):
        source(root)
    data = source(root, on_error="skip")
    assert len(data.split("train")) == 24
    assert data.split("train").keys()[2] == "preference_train/3/0"
    ((file, line, key, reason),) = listed(root)
    assert (file, line, key) == ("preference_train.json", 2, "preference_train/2")
    with pytest.raises(ValueError, match=f"entry 2: .*{told}"):
        raise ValueError(f"entry 2: {reason}")


@pytest.mark.parametrize(
    ("parse", "change", "told"),
    [
        (hpd_v2, {"human_preference": [0, 0]}, r"human_preference is \[0, 0\], not of 0 and at least one 1"),
        (hpd_v2, {"human_preference": [0, 2]}, r"human_preference is \[0, 2\], not of 0 and at least one 1"),
        (hpd_v2, {"human_preference": [1]}, "human_preference has 1 numbers for 2 images"),
        (hpd_v2, {"human_preference": 1}, "human_preference is 1, not a list of numbers"),
        (hpd_v2, {"rank": [1, 2], "image_path": None}, "image_path is None, not a list of images"),
        (imagereward, {"ranking": [1, 2, 3]}, "ranking has 3 numbers for 2 images"),
        (imagereward, {"ranking": [1, float("nan")]}, r"ranking is \[1, nan\], not a list of numbers"),
        (imagereward, {"generations": []}, "generations has no images"),
    ],
)
def test_each_format_tells_what_is_wrong(parse, change, told):
    images = {name: ["a", "b"] for name in ("file_path", "image_path", "generations")}
    with pytest.raises(ValueError, match=told):
        parse({"prompt": "a", "human_preference": [0, 1], "ranking": [1, 2], **images} | change)


def test_a_choice_sums_to_one_in_every_format():
    images = {name: ["a", "b", "c"] for name in ("file_path", "image_path", "generations")}
    for choice in (
        hpd_v1({"prompt": "a", "human_preference": 1, **images}),
        hpd_v2({"prompt": "a", "human_preference": [1, 1, 0], **images}),
        hpd_v2({"prompt": "a", "rank": [2.5, 1, 2.5], **images}),
        imagereward({"prompt": "a", "ranking": [4, 4, 4], **images}),
        pickapic(pair(0, label_0=0.7, label_1=0.3)),
    ):
        assert isinstance(choice, Choice)
        assert sum(choice.chosen) == pytest.approx(1)
        assert len(choice.chosen) == len(choice.rank) == len(choice.images)
        assert max(choice.chosen) == choice.chosen[choice.rank.index(1)]


def test_a_training_group_that_cannot_be_decoded_is_replaced_as_a_whole(root):
    (root / "preference_images/1_2.png").write_bytes(picture(1)[:50])
    with pytest.raises(ValueError, match=r"preference_train\.json, entry 2: .*1_2\.png: "):
        source(root).split("train")[2]
    for index in (2, 4):  # whichever is read first
        rows = source(root, on_error="skip").split("train")
        assert listed(root) == []
        assert rows[index]["key"] == f"preference_train/5/{index - 2}"
    assert [rows[i]["key"] for i in (2, 3, 4)] == [
        "preference_train/5/0",
        "preference_train/5/1",
        "preference_train/5/2",
    ]
    assert [rows[i]["group"] for i in (2, 3, 4)] == [1, 1, 1]  # its place's: both may be in one batch
    assert sum(rows[i]["chosen"] for i in (2, 3, 4)) == 1
    ((file, line, key, reason),) = listed(root)
    assert (file, line, key) == ("preference_train.json", 2, "preference_train/2")
    assert "1_2.png" in reason
    assert len(source(root, on_error="skip", verify=True).split("train")) == 24
    assert [row[1] for row in listed(root)] == [2]


def test_a_damaged_test_image_ends_the_run_unless_it_is_verified(root):
    (root / "preference_images/100_1.png").write_bytes(b"<html>")
    data = source(root, on_error="skip")
    with pytest.raises(ValueError, match=r"preference_test\.json, entry 1: .*100_1\.png: cannot identify image file"):
        data.split("test")[0]
    with pytest.raises(ValueError, match=r"preference_test\.json: there is no usable entry"):
        source(root, on_error="skip", verify=True)
    for number in range(9):
        (root / f"preference_images/{number}_0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"no group of 3 images can be read, see .*quarantine\.jsonl"):
        source(root, on_error="skip").split("train")[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"format": "hpd"}, "format=hpd: choose from hpd_v1, hpd_v2, pickapic, imagereward"),
        ({"fit": "squash"}, "fit=squash: choose from pad, crop"),
        ({"on_error": "drop"}, "on_error=drop: choose from raise, skip"),
        ({"size": 0}, "size=0 must be at least 1 px"),
        ({"val": 1.0}, r"val=1\.0 in \[0, 1\)"),
        ({"files": {"dev": "preference_train.json"}}, "files=dev: choose from train, val, test"),
        ({"files": {"train": "no.json"}}, r"no\.json: no such folder"),
        ({"files": {"train": "torn.json"}}, r"torn\.json: no JSON \(.*line 1"),
        ({"files": {"train": "object.json"}}, r"object\.json: not a list of objects"),
        ({"files": {"train": "preference_train.json"}, "format": "pickapic"}, r"train\.json: no parquet file"),
    ],
)
def test_impossible_arguments_and_files_are_named(root, words, told):
    (root / "torn.json").write_text('[{"prompt": "a')
    (root / "object.json").write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match=told):
        source(root, **words)
    with pytest.raises(ValueError, match="No split 'dev'; choose from train, val, test"):
        source(root).split("dev")


class Chooser(System):
    """Remembers the groups that it is shown."""

    fields = frozenset({"image", "group", "chosen", "weight"})
    targets = frozenset({"chosen"})
    lr, weight_decay, warmup = 1e-3, 0.0, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        raise NotImplementedError

    def evaluation_step(self, batch, split):
        raise NotImplementedError


@pytest.mark.parametrize(("replicas", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_batches_have_whole_groups_and_no_padding_in_any_process(root, replicas, workers, monkeypatch):
    shown: list[list[torch.Tensor]] = []
    for rank in range(replicas):
        data = AdData(source(root), batch_size=8, num_workers=workers)
        data.require(Chooser())
        monkeypatch.setattr(data, "_place", lambda rank=rank: (replicas, rank))
        shown.append([batch["group"] for batch in data.train_dataloader()])
        for batch in data.train_dataloader():
            assert batch["image"].shape == (len(batch["group"]), 3, SIZE, SIZE)
            assert 4 < len(batch["group"]) <= 8  # rows count, and no group of 4 would have fitted
            assert set(batch) == {"key", "image", "group", "chosen", "weight"}
            sums = torch.zeros(9).index_add(0, batch["group"], batch["chosen"])
            assert sums[batch["group"].unique()].tolist() == [1] * len(batch["group"].unique())
    assert len({len(batches) for batches in shown}) == 1
    counts = Counter(torch.cat([group for batches in shown for group in batches]).tolist())
    assert all(count == 2 + group % 3 for group, count in counts.items())
    assert sum(counts.values()) > 27 - 8 * replicas


def test_training_continues_with_the_next_groups(root, monkeypatch):
    data = AdData(source(root), batch_size=8, num_workers=0, seed=3)
    data.require(Chooser())
    whole = [batch["key"] for batch in data.train_dataloader()]
    for step in range(len(whole)):
        monkeypatch.setattr(data, "_trained", lambda step=step: step)
        assert [batch["key"] for batch in data.train_dataloader()] == whole[step:]


def test_the_showroom_has_the_same_fields_in_whole_groups():
    config = compose("fit", ["data=showroom_choices", "data.source.size=16", "data.source.cache=null"]).data.source
    data = build(config)
    assert data.fields | {"key"} == Preferences.fields
    for split, num in config.num.items():
        assert np.bincount(data.split(split).groups).tolist() == [2, 3, 4] * (num // 9)
    batch = collate([data.split("val")[index] for index in range(5)])
    assert batch["chosen"][:2].sum() == batch["chosen"][2:].sum() == 1
    assert sorted(batch["rank"][2:].tolist()) == [1, 2, 3]


def test_the_example_is_read(tmp_path):
    folder = write_example(str(tmp_path / "example"), groups=4, size=16)
    words = ["data=hpd_v1", f"data.source.folder={folder}", "data.source.val=0"]
    data = build(compose("fit", words).data.source)
    rows = data.split("test")
    assert rows.groups.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    records = [rows[index] for index in range(len(rows))]
    for group in range(4):
        members = [record for record in records if record["group"] == group]
        assert sorted(record["chosen"] for record in members) == [0] * (len(members) - 1) + [1]
        assert len({record["prompt"] for record in members}) == 1
