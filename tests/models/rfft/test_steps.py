"""The step policies: what they draw, how often, and what they refuse."""

import pytest
import torch

from src.models.rfft.steps import LastK, LateRandom, RandomTruncation, Window


def test_late_random_draws_each_of_the_last_steps_equally_often():
    torch.manual_seed(0)
    draws = [LateRandom()(40) for _ in range(4000)]
    assert all(len(windows) == 1 and windows[0].stop == windows[0].start + 1 for windows in draws)
    counts = torch.bincount(torch.tensor([windows[0].start for windows in draws]), minlength=40)
    assert counts[:30].sum() == 0  # 30 to 39 of 40, as ReFL counts
    assert counts[30:].min() > 320
    assert counts[30:].max() < 480


def test_several_draws_are_different_steps_in_order():
    torch.manual_seed(0)
    for _ in range(50):
        starts = [window.start for window in LateRandom(0.25, draws=3)(20)]
        assert starts == sorted(set(starts))
        assert set(starts) <= set(range(15, 20))
    assert [w.start for w in LateRandom(0.5, draws=4)(8)] == [4, 5, 6, 7]


def test_the_peers_carry_the_gradient_to_the_end():
    torch.manual_seed(0)
    assert LastK(3)(10) == [Window(7, 10)]
    starts = {RandomTruncation(0.4)(10)[0] for _ in range(200)}
    assert starts == {Window(6, 10), Window(7, 10), Window(8, 10), Window(9, 10)}


def test_draws_follow_the_seed_of_torch():
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append([LateRandom(0.25, 3)(40), RandomTruncation()(40)])
    assert drawn[0] == drawn[1]


def test_what_cannot_be_drawn_is_refused():
    for make, words in (
        (lambda: LateRandom(0.25, draws=3)(8), "draws=3 is more than the last 2 of 8"),
        (lambda: LateRandom(draws=0), "draws=0"),
        (lambda: LateRandom(0.0), "share=0"),
        (lambda: LastK(0), "k=0"),
        (lambda: RandomTruncation(1.5), r"share=1\.5"),
        (lambda: LastK(5)(4), r"k=5 is more than generator\.num_steps=4"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
