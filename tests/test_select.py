"""Selection of images by their scores: the two rules, what is written, and that it can be trained on."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.data.image_table import ImageTable
from src.select import Chosen, by_softmax, by_threshold, main


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["select", *words])
    return main()


def pool(folder: Path) -> list[str]:
    """Eight images of two prompts, with scores."""
    folder.mkdir(parents=True)
    rows, scores = ["key,image,prompt,product"], ["key,value"]
    for number in range(8):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"ad{number},{number}.png,{'a red room' if number < 4 else 'oak'},cut.png")
        scores.append(f"ad{number},{[0.1, 0.9, 0.5, 0.8, 0.2, 0.3, 0.1, 0.0][number]}")
    Image.new("RGBA", (12, 8), (9, 9, 9, 255)).save(folder / "cut.png")
    (folder / "pool.csv").write_text("\n".join(rows) + "\n")
    (folder / "scores.csv").write_text("\n".join(scores) + "\n")
    return [f"table={folder / 'pool.csv'}", f"scores={folder / 'scores.csv'}"]


def test_by_threshold_keeps_the_best_of_a_prompt_above_it():
    assert by_threshold([0.1, 0.9, 0.5, 0.9], 0.5, 2) == [Chosen(1, "positive"), Chosen(3, "positive")]
    assert by_threshold([0.1, 0.9, 0.5], 0.5, 5) == [Chosen(1, "positive"), Chosen(2, "positive")]
    assert by_threshold([0.1, 0.2], 0.5, 1) == []


def test_by_softmax_takes_those_that_stand_out():
    # softmax of 3, 0, 0, 0 is 0.870 and three times 0.043; that of -3, 0, 0, 0 has 0.016 and three times 0.328
    assert by_softmax([0.03, 0.0, 0.0, 0.0], 100.0, 2.0, 4) == [Chosen(0, "positive")]
    assert by_softmax([0.0, 0.03, 0.0, -0.03], 100.0, 2.0, 4) == [Chosen(1, "positive"), Chosen(3, "negative")]
    assert by_softmax([0.0, 0.0, 0.0, 0.0], 100.0, 2.0, 4) == []
    assert by_softmax([1.0, 0.0, 0.0], 100.0, 2.0, 4) == []  # fewer than four images
    assert by_softmax([math.log(2.9), 0.0, 0.0, 0.0], 1.0, 2.0, 4) == []  # 2.9 / 5.9 is below 2 / 4
    assert by_softmax([math.log(3.1), 0.0, 0.0, 0.0], 1.0, 2.0, 4) == [Chosen(0, "positive")]


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=9))
def test_by_softmax_is_the_softmax(values):
    chosen = by_softmax(values, 1.0, 2.0, 4)
    for sign, kind in ((1, "positive"), (-1, "negative")):
        shares = np.exp(sign * np.array(values))
        shares = shares / shares.sum()
        if abs(shares.max() - 2 / len(values)) > 1e-6:
            assert any(found.kind == kind for found in chosen) == (shares.max() > 2 / len(values))


def test_the_selected_rows_can_be_trained_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "chosen/selected.csv"
    assert command(monkeypatch, *pool(tmp_path / "pool"), f"out={out}", "threshold=0.25", "per_prompt=2") == 0
    assert "3 positive of 8 scored images of 2 pairs of prompt and product" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["value"], row["kind"]) for row in rows] == [
        ("ad1", "0.9", "positive"), ("ad3", "0.8", "positive"), ("ad5", "0.3", "positive"),
    ]  # fmt: skip
    source = ImageTable(out, size=16, val=0.0, test=0.0)
    records = [source.split("train")[index] for index in range(3)]
    assert [int(record["image"][0, 0, 0]) for record in records] == [1, 3, 5]
    assert records[0]["image"].shape == (3, 16, 16)
    assert records[0]["product"].shape == (4, 16, 16)
    assert records[0]["product"].min() == 9


def test_negatives_have_the_identifier_before_their_prompt(tmp_path, monkeypatch):
    out = tmp_path / "selected.csv"
    words = pool(tmp_path / "pool")
    assert command(monkeypatch, *words, f"out={out}", "rule=softmax", "scale=20") == 0
    source = ImageTable(out, size=16, identifier="Weird image. ", val=0.0, test=0.0)
    prompts = [source.split("train")[index]["prompt"] for index in range(len(source.split("train")))]
    with out.open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert {"positive", "negative"} == set(kinds)
    assert [prompt.startswith("Weird image. ") for prompt in prompts] == [kind == "negative" for kind in kinds]


def test_images_of_a_prompt_share_a_split_and_tables_without_products_have_empty_ones(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [f'{{"key": "{n}", "image": "a.png", "prompt": "room {n % 20}"}}' for n in range(60)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    source = ImageTable(tmp_path / "all.jsonl", size=8, val=0.2, test=0.2)
    prompts = {name: {row.cells["prompt"] for row in source.rows[name]} for name in ("train", "val", "test")}
    assert sum(map(len, prompts.values())) == 20
    assert all(prompts.values())
    assert source.split("train")[0]["product"].max() == 0


@pytest.mark.parametrize(
    ("words", "scores", "told"),
    [
        (["rule=best"], None, "rule=best: choose one of threshold, softmax"),
        ([], None, "rule=threshold needs threshold=NUMBER"),
        (["threshold=high"], None, "rule=threshold needs threshold=NUMBER"),
        (["threshold=2"], None, "no image of 2 pairs of prompt and product is selected"),
        (["threshold=0"], "key,value\nad0,x\n", "scores.csv, line 2 (ad0): value=x is not a finite number"),
        (["threshold=0"], "key,value\nad0,nan\n", "scores.csv, line 2 (ad0): value=nan is not a finite number"),
        (["threshold=0"], "key,value\nad0,1e999\n", "scores.csv, line 2 (ad0): value=1e999 is not a finite number"),
        (["threshold=0"], "key,value\nad0,1\nad1,1\nad0,2\n", "scores.csv, lines 2 and 4 have the same key ad0"),
        (["threshold=0"], "key,value\nother,1\n", "has no score of a row of"),
        (["threshold=0"], "key,score\nad0,1\n", "the column value is missing"),
    ],
)
def test_what_cannot_be_selected_is_one_line(tmp_path, monkeypatch, capsys, words, scores, told):
    places = pool(tmp_path / "pool")
    if scores:
        (tmp_path / "pool/scores.csv").write_text(scores)
    assert command(monkeypatch, *places, f"out={tmp_path / 'out.csv'}", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("keys", [True, False])
def test_a_key_that_the_table_has_twice_is_refused_with_its_lines(tmp_path, monkeypatch, capsys, keys):
    places = pool(tmp_path / "pool")
    rows = ["ad0,0.png,oak", "ad1,1.png,oak", "ad0,2.png,oak"] if keys else ["0.png,oak", "1.png,oak", "0.png,red"]
    header = "key,image,prompt" if keys else "image,prompt"
    (tmp_path / "pool/pool.csv").write_text("\n".join([header, *rows]) + "\n")
    assert command(monkeypatch, *places, f"out={tmp_path / 'out.csv'}", "threshold=0") == 2
    assert f"pool.csv, lines 2 and 4 have the same key {'ad0' if keys else '0.png'}." in capsys.readouterr().err


def test_images_of_two_products_under_one_prompt_do_not_compete(tmp_path, monkeypatch):
    rows = [{"key": str(n), "image": f"{n}.png", "prompt": "oak", "product": f"cut{n % 2}.png"} for n in range(6)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scores.csv").write_text("\n".join(["key,value", *(f"{n},{n}" for n in range(6))]) + "\n")
    places = [f"table={tmp_path / 'pool.jsonl'}", f"scores={tmp_path / 'scores.csv'}", f"out={tmp_path / 'out.csv'}"]
    assert command(monkeypatch, *places, "threshold=0") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [(row["key"], row["product"]) for row in csv.DictReader(file)] == [("4", "cut0.png"), ("5", "cut1.png")]


def test_rows_with_different_columns_give_a_table_with_all_of_them(tmp_path, monkeypatch, capsys):
    rows = [
        {"key": "a", "image": "a.png", "prompt": "oak"},
        {"key": "b", "image": "b.png", "prompt": "red", "title": "Chair", "seed": 3},
        {"key": "c", "image": "c.png", "prompt": "red", "source": "camera"},
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scores.csv").write_text("key,value\na,1\nb,2\nc,1\n")
    places = [f"table={tmp_path / 'pool.jsonl'}", f"scores={tmp_path / 'scores.csv'}", f"out={tmp_path / 'out.csv'}"]
    assert command(monkeypatch, *places, "threshold=0") == 0
    assert "2 positive of 3 scored images of 2 prompts" in capsys.readouterr().out
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {**dict.fromkeys(("title", "seed", "source"), ""), **rows[0], "value": "1.0", "kind": "positive"},
            {**rows[1], "seed": "3", "source": "", "value": "2.0", "kind": "positive"},
        ]


def test_a_table_that_is_there_is_never_replaced(tmp_path, monkeypatch, capsys):
    places = pool(tmp_path / "pool")
    (tmp_path / "notes.csv").write_text("mine")
    for out in (tmp_path / "pool/pool.csv", tmp_path / "notes.csv"):
        before = out.read_bytes()
        assert command(monkeypatch, *places, f"out={out}", "threshold=0") == 2
        assert f"{out} exists; choose another out, or remove it." in capsys.readouterr().err
        assert out.read_bytes() == before
