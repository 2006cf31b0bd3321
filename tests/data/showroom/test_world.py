import numpy as np
import pytest

from src.data.batch import CLASSES, FIELDS, collate
from src.data.showroom import feedback, text
from src.data.showroom.draw import paint
from src.data.showroom.rooms import STYLES
from src.data.showroom.scene import FAULTS, FREQUENCIES, contrast, scene
from src.data.showroom.sprites import catalogue, views
from src.data.showroom.world import Showroom, group_of
from src.data.splits import SPLITS
from src.data.words import split_words


@pytest.fixture(scope="module")
def pictures():
    return Showroom({"train": 180}).split("train")


@pytest.fixture(scope="module")
def records(pictures):
    return [pictures[i] for i in range(90)]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_record_has_every_field_and_collates(records):
    assert set(records[0]) == set(FIELDS)
    batch = collate(records[:8])
    assert batch["product"].shape == (8, 4, 128, 128)
    assert batch["heatmaps"].shape == (8, 2, 128, 128)


def test_a_record_depends_on_seed_and_index_alone(pictures, records):
    again = Showroom({"train": 40}).split("train")
    assert all(same(again[i], records[i]) for i in (17, 3, 30))
    assert not same(Showroom({"train": 40}, seed=1).split("train")[3], records[3])


def test_the_cache_gives_back_what_was_drawn(records, tmp_path):
    cached = Showroom({"train": 12}, cache=str(tmp_path)).split("train")
    for index in (0, 5, 11):
        assert same(cached[index], records[index])  # drawn
        assert same(cached[index], records[index])  # read
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_splits_share_neither_product_nor_style():
    seen = {s: [scene(0, s, g, 0) for g in range(150)] for s in SPLITS}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        for what in (lambda s: s.brief.item.item, lambda s: s.setting.style):
            assert not {what(s) for s in seen[a]} & {what(s) for s in seen[b]}
        furniture = {i.item for i in catalogue() if i.role == "prop"}
        assert not ({p.item for s in seen[a] for p in s.props} & {p.item for s in seen[b] for p in s.props}) - furniture
    assert {style.split for style in STYLES.values()} == set(SPLITS)


def test_class_frequencies_are_a_generators():
    labels = [scene(0, "train", g, 0).label for g in range(1500)]
    share = np.bincount(labels, minlength=5) / len(labels)
    assert np.abs(share - FREQUENCIES).max() < 0.04


def test_the_product_is_pasted_unchanged(records):
    for record in records:
        solid = record["product"][3] == 255
        off = np.abs(record["image"].astype(int) - record["product"][:3].astype(int))[:, solid]
        assert solid.sum() > 50
        assert off.max() <= 1


def test_faults_are_what_they_say(pictures):
    seen = set()
    for index in range(len(pictures)):
        s = pictures.scene(index)
        seen.add(s.fault)
        assert s.fault in FAULTS[CLASSES[s.label]]
        assert (s.scale >= 2 or s.scale <= 0.5) == (CLASSES[s.label] == "size_mismatch")
        assert (s.lift > 0) == (s.fault == "floating")
        if s.fault == "own_colours":
            assert contrast(s.wall_colour, s.brief.colour) < 42
        if s.fault == "clutter":
            assert len(s.props) >= 4
    assert len(seen) >= 10


def test_what_grew_out_of_the_product_is_outside_its_mask():
    pictures = Showroom({"train": 200}).split("train")
    grown = [i for i in range(200) if CLASSES[pictures.scene(i).label] == "shape_hallucination"][:12]
    for index in grown:
        painted = paint(pictures.scene(index), 128)
        outside = (painted["flaw"][0] > 128) & (painted["product"][3] < 128)
        solid = painted["product"][3] > 128
        assert outside.sum() > 0.03 * solid.sum()  # a growth that nobody can see is no fault
        salience = painted["saliency"][0].astype(float)
        assert abs(salience[outside].mean() - np.median(salience[solid])) < 40  # it stands out as the product does


def test_a_product_in_its_own_colours_stands_out_less(pictures):
    salience = {"none": [], "own_colours": []}
    for index in range(len(pictures)):
        if (fault := pictures.scene(index).fault) in salience and len(salience[fault]) < 24:
            record = pictures[index]
            salience[fault].append(np.median(record["saliency"][0][record["product"][3] > 200]))
    assert np.mean(salience["own_colours"]) < 0.6 * np.mean(salience["none"])


def test_a_product_that_stands_in_the_wall_is_not_behind_it():
    pictures = Showroom({"train": 400}).split("train")
    inside = [i for i in range(400) if pictures.scene(i).fault == "into_wall"][:6]
    assert len(inside) == 6
    for index in inside:
        record = pictures[index]
        solid = record["product"][3] > 200
        free = record["product"][3] == 0
        for row, inside, outside in zip(record["depth"][0].astype(int), solid, free, strict=True):
            if inside.any() and outside.any():
                assert row[inside].min() >= row[outside].min() - 2  # the wall is the farthest of the row


def test_near_things_have_the_larger_inverse_depth(pictures):
    for index in range(30):
        s = pictures.scene(index)
        if s.fault == "none" and s.brief.surface == "floor":
            depth = pictures[index]["depth"][0].astype(int)
            assert depth[-1].mean() > depth[0].mean()  # the floor at the bottom is nearer than the wall at the top


def test_one_picture_of_each_group_is_chosen(records):
    for group in {r["group"] for r in records}:
        members = [r for r in records if r["group"] == group]
        if len(members) == group_of(next(i for i, r in enumerate(records) if r["group"] == group))[2]:
            assert sum(r["chosen"] for r in members) == 1
            assert sorted(r["rank"] for r in members) == list(range(1, len(members) + 1))
            assert all(r["chosen"] == (r["rank"] == 1) for r in members)
            assert len({(r["title"], r["prompt"]) for r in members}) == 1


def test_groups_number_two_to_four_in_turn():
    assert [group_of(i) for i in range(10)] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3), (1, 2, 3), (2, 0, 4), (2, 1, 4), (2, 2, 4), (2, 3, 4), (3, 0, 2),
    ]  # fmt: skip


def test_the_prop_of_the_prompt_is_followed_if_one_stands_there(pictures):
    names = {item.item: item.name for item in catalogue()}
    for index in range(len(pictures)):
        s = pictures.scene(index)
        shown = {names[prop.item] for prop in s.props}
        prop = split_words(s.brief.setting.prop)
        assert text.truths(s)[-len(prop) :] == [int(s.brief.setting.prop in shown)] * len(prop)


def test_words_and_marks_agree(pictures, records):
    for index, record in enumerate(records):
        found = split_words(record["prompt"])
        truths = text.truths(pictures.scene(index))
        assert len(found) == len(truths) == len(record["aligned_words"])
        said, shown = pictures.scene(index).brief.setting, pictures.scene(index).setting
        if said.wall != shown.wall:
            assert [t for w, t in zip(found, truths, strict=True) if w in said.wall.split()][:1] == [0]


def test_scores_are_thirds_of_quarters(records):
    scores = np.stack([r["scores"] for r in records])
    assert scores.min() >= 0
    assert scores.max() <= 1
    np.testing.assert_allclose(scores * 12, np.rint(scores * 12), atol=1e-4)
    label = np.array([r["label"] for r in records])
    assert scores[label == 0, 0].mean() > scores[label == 4, 0].mean() + 0.2  # plausibility


def test_heat_map_of_hand_placed_points():
    drawn = feedback.heat_map([[(50, 50)], [(50, 50)], []], 100)
    assert drawn[50, 50] == 170
    assert set(np.unique(drawn)) == {0, 170}
    assert abs((drawn > 0).sum() - np.pi * 5**2) < 15  # a disc of 1/20 of the height
    assert not feedback.heat_map([[], [], []], 100).any()


def test_unknown_split_and_field_are_named():
    with pytest.raises(ValueError, match=r"'validation'.*train"):
        Showroom({"train": 1}).split("validation")
    with pytest.raises(ValueError, match=r"'labels'.*label"):
        Showroom({"train": 1}, holds=("labels",))


def test_every_item_has_all_its_views():
    for item in catalogue():
        found = views(item.item)
        assert len(found) == 6
        assert all(v.rgba.shape[:2] == v.depth.shape and (v.rgba[..., 3] > 128).sum() > 80 for v in found)
