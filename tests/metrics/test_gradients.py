"""Norms and cosine of two gradients against hand-worked ones."""

import pytest
import torch

from src.metrics.gradients import gradient_agreement


def test_gradients_of_two_terms_by_hand():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    first, second = 3 * a[0] + 4 * b, (a * a).sum()  # gradients (3, 0, 4) and (2, 4, 0)
    found = [float(value) for value in gradient_agreement(first, second, [a, b])]
    assert found == pytest.approx([5, 20**0.5, 6 / (5 * 20**0.5)])
    assert float(gradient_agreement(first, -first, [a, b])[2]) == pytest.approx(-1)
    (first + second).backward()  # the graph is still there
