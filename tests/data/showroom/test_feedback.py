"""Simulated feedback is informative: an oracle of the scene predicts it, and the class alone does not."""

import numpy as np
import pytest
import torch

from src.data.batch import CLASSES, SCORES
from src.data.showroom import feedback
from src.data.showroom.scene import Scene, scene
from src.data.showroom.text import truths
from src.data.showroom.world import group_of
from src.metrics.correlation import srcc

NUM = 600


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(0, "test", *group_of(row)[:2]) for row in range(NUM)]


def test_who_knows_the_scene_predicts_scores_and_the_class_alone_does_not(scenes):
    rng = np.random.default_rng(0)
    labels = np.array([each.label for each in scenes])
    true = np.stack([feedback.qualities(each, CLASSES[each.label]) for each in scenes])
    judged = np.stack([feedback.scores(each, CLASSES[each.label], rng) for each in scenes])
    of_class = np.stack([judged[labels == label].mean(axis=0) for label in range(len(CLASSES))])[labels]
    oracle, by_class = (
        {name: float(srcc(torch.tensor(x[:, n]), torch.tensor(judged[:, n]))) for n, name in enumerate(SCORES)}
        for x in (true, of_class)
    )
    assert all(value > 0.7 for value in oracle.values()), oracle
    assert oracle["plausibility"] > 0.85
    assert by_class["alignment"] < 0.3, "which needs prompt and image"
    assert by_class["aesthetics"] < 0.5


def test_misaligned_words_are_rare_and_follow_the_scene(scenes):
    rng = np.random.default_rng(0)
    true = np.concatenate([truths(each) for each in scenes])
    judged = np.concatenate([feedback.aligned_words(each, rng) for each in scenes])
    hits = ((true == 0) & (judged == 0)).sum()
    assert 2 * hits / ((true == 0).sum() + (judged == 0).sum()) > 0.95
    assert 0.02 < (judged == 0).mean() < 0.1


def test_choices_follow_quality_with_noise():
    rng = np.random.default_rng(0)
    utilities = [np.array([0.2, 0.5, 0.6]), np.array([0.1, 0.9])]
    hits = np.mean([[feedback.ranking(u, rng)[np.argmax(u)] == 1 for u in utilities] for _ in range(2000)], axis=0)
    expected = [np.exp(8 * u.max()) / np.exp(8 * u).sum() for u in utilities]
    assert hits == pytest.approx(expected, abs=0.03)


def test_a_fifth_of_the_products_are_miniatures_or_giants(scenes):
    special = [each.brief for each in scenes if each.brief.version]
    assert 0.1 < len(special) / len(scenes) < 0.3
    assert {brief.version for brief in special} == {"miniature", "giant"}
