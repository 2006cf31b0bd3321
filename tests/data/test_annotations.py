"""Own annotations: discs, means and votes worked out by hand, and the way to `data=richhf`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.data.annotations import aggregate, agreement, aligned_words, disc_map, heat_map, normalized, read_ratings
from src.data.batch import SCORES
from src.data.richhf import RichHF
from src.data.richhf_format import FILES

SCORED = dict(zip(SCORES, (5, 4, 3, 2), strict=True))
RATING = {
    "image": "pics/a.png",
    "prompt": "a yellow cat",
    "rater": "r1",
    "points_implausible": [[10, 10]],
    "points_misaligned": [],
    "words_misaligned": [1],
    **SCORED,
}


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    (folder / "pics").mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.new("RGB", (60, 40), "white").save(folder / f"pics/{name}.png")
    table = folder / "ratings.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(RATING | row) for row in rows]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def test_disc_map():
    found = disc_map([[10, 20]], 60, 40)  # radius 2, at the corner of four pixels
    assert found[18:22, 8:12].astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    assert found.sum() == 12
    assert disc_map([], 60, 40).sum() == 0
    assert disc_map([[0, 0]], 60, 40).sum() == 3  # a quarter of it
    assert disc_map([[10, 20], [10, 20], [11, 20]], 60, 40).sum() == 16  # the union
    assert disc_map([[256, 256]], 512, 512).mean() == pytest.approx(np.pi / 400, rel=2e-3)  # 0.785 % of the image


def test_heat_map_is_the_mean_over_raters():
    found = heat_map([[[10, 20]], [[11, 20]], []], 60, 40)
    assert found.shape == (40, 60)
    assert found[19, 8:13] * 3 == pytest.approx([1, 2, 2, 2, 1])
    assert np.unique(np.rint(255 * found)).tolist() == [0, 85, 170]
    assert heat_map([[], []], 4, 4).max() == 0


def test_majority_vote_on_words():
    assert aligned_words([[0, 1], [1], [1, 2]], 4) == [1, 0, 1, 1]
    assert aligned_words([[0], [0, 1]], 2) == [0, 1]  # a tie of two counts as aligned
    assert aligned_words([[0]], 1) == [0]
    assert aligned_words([[], []], 0) == []


def test_normalized_scores():
    assert normalized([[1, 5, 3, 4], [1, 5, 4, 4], [1, 5, 4, 5]]) == pytest.approx([0, 1, 8 / 12, 10 / 12])


def test_agreement():
    found = agreement([[[1, 1, 3, 5], [2, 5, 3, 5]], [[1, 3, 3, 4], [1, 3, 3, 5], [3, 3, 3, 4]], [[1, 5, 1, 5]]])
    assert found["plausibility"]["histogram"] == {"0": 0, "0.25": 0.5, "0.5": 0.5, "0.75": 0, "1": 0}
    assert [found[name]["within_0.25"] for name in SCORES] == [0.5, 0.5, 1, 1]
    assert found["alignment"]["histogram"]["1"] == 0.5
    assert found["overall"]["images"] == 2  # one has a single rater
    alone = agreement([[[1, 1, 1, 1]]])["overall"]
    assert (alone["images"], alone["within_0.25"], set(alone["histogram"].values())) == (0, 0, {0})


def test_aggregate_writes_a_richhf_folder(tmp_path):
    rows = [
        {},
        {"rater": "r2", "points_implausible": [[10, 10]], "points_misaligned": [[50, 30]], "overall": 3},
        {"rater": "r3", "points_implausible": [], "words_misaligned": [2], "plausibility": 1},
        {"image": "pics/b.png", "prompt": "b", "words_misaligned": []},
    ]
    out = aggregate(str(write(tmp_path, *rows)), str(tmp_path / "out"), val=0.0, test=0.0)
    data = RichHF(str(out), size=20).split("train")
    record, other = data[0], data[1]
    assert (record["key"], record["prompt"], record["aligned_words"]) == ("train/a.png", "a yellow cat", [1, 0, 1])
    assert record["scores"] == pytest.approx([(11 / 3 - 1) / 4, 3 / 4, 2 / 4, (7 / 3 - 1) / 4])
    assert other["scores"] == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])
    implausible, misaligned = RichHF(str(out), size=60).split("train")[0]["heatmaps"]  # 60x40 px, stretched to 60x60
    assert (implausible.max(), implausible[15, 10], misaligned.max(), misaligned[45, 50]) == (170, 170, 85, 85)
    assert json.loads((out / "agreement.json").read_text())["plausibility"]["histogram"]["1"] == 1


def test_splits_share_no_prompt(tmp_path):
    scores = [dict.fromkeys(SCORES, n % 4 + 1) for n in range(60)]
    rows = [{"image": f"pics/{n}.png", "prompt": f"cat {n % 20}"} | scores[n] for n in range(60)]
    table = write(tmp_path, *rows)
    for n in range(60):
        Image.new("L", (20, 20)).save(tmp_path / f"pics/{n}.png")
    out = aggregate(str(table), str(tmp_path / "out"), val=0.3, test=0.3)
    data = RichHF(str(out), size=8)
    prompts = {name: [row.prompt for row in data.rows[name]] for name in FILES}
    assert sum(map(len, prompts.values())) == 60
    assert all(map(len, prompts.values()))
    assert sum(len(set(some)) for some in prompts.values()) == 20


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 2: Expecting property name"),
        ("[]", r"line 2: \[\] is not a JSON object"),
        ('{"image": "pics/a.png", "prompt": "x"}', "line 2: there is no rater, points_implausible, points_misal"),
        ({"rater": " "}, "line 2: rater is ' ', not a text"),
        ({"rater": "r2", "points_misaligned": [[1]]}, r"line 2: points_misaligned is \[\[1\]\], not a list of \["),
        ({"rater": "r2", "points_implausible": [[1, float("nan")]]}, r"line 2: points_implausible is \[\[1, nan\]\]"),
        ({"rater": "r2", "words_misaligned": [3]}, r"line 2: words_misaligned is \[3\], not a list of numbers from"),
        ({"rater": "r2", "words_misaligned": [True]}, r"line 2: words_misaligned is \[True\]"),
        ({"rater": "r2", "overall": 0}, "line 2: overall is 0, not a whole number from 1 to 5"),
        ({"rater": "r2", "overall": 2.5}, r"line 2: overall is 2\.5, not a whole number"),
        ({}, "line 2: a second rating of 'pics/a.png' by 'r1'"),
        ({"rater": "r2", "prompt": "a cat hat"}, "line 2: 'pics/a.png' has the prompt 'a yellow cat' before"),
    ],
)  # fmt: skip
def test_bad_lines_are_rejected(tmp_path, row, told):
    with pytest.raises(ValueError, match=rf"ratings\.jsonl, {told}"):
        read_ratings(write(tmp_path, {}, row))


def test_points_and_images_are_checked(tmp_path):
    for number, (row, told) in enumerate(
        (
            ({"points_misaligned": [[61, 10]]}, r"'r1' marks \[61, 10\] in 'pics/a\.png', which is 60x40"),
            ({"image": "pics/no.png"}, r"pics/no\.png: no such file"),
            ({"image": "ratings.jsonl"}, r"'ratings\.jsonl' is none of \.png"),
        )
    ):
        with pytest.raises(ValueError, match=told):
            aggregate(str(write(tmp_path, row)), str(tmp_path / f"out{number}"))
    (tmp_path / "other").mkdir()
    Image.new("L", (60, 40)).save(tmp_path / "other/a.png")
    with pytest.raises(ValueError, match=r"'pics/a\.png' and 'other/a\.png' have the same stem"):
        aggregate(str(write(tmp_path, {}, {"image": "other/a.png"})), str(tmp_path / "out3"))
    with pytest.raises(ValueError, match=r"out3 is not empty"):
        aggregate(str(write(tmp_path, {})), str(tmp_path / "out3"))
    with pytest.raises(ValueError, match=r"val=0\.6, test=0\.4: the shares"):
        aggregate(str(write(tmp_path, {})), str(tmp_path / "out4"), val=0.6, test=0.4)
    with pytest.raises(ValueError, match="there are no ratings"):
        read_ratings(write(tmp_path))
