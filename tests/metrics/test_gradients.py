"""Gradients of two terms against hand-worked ones."""

import pytest
import torch

from src.metrics.gradients import compared, flat_gradient


def test_gradients_of_two_terms_by_hand():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    first, second = flat_gradient(3 * a[0] + 4 * b, [a, b]), flat_gradient((a * a).sum(), [a, b])
    assert first.tolist() == [3, 0, 4]
    assert second.tolist() == [2, 4, 0]  # b has no part in it
    found = compared(3 * a[0] + 4 * b, (a * a).sum(), [a, b])
    assert found == pytest.approx((5, 20**0.5, 6 / (5 * 20**0.5)))
    assert compared(3 * a[0], 0 * b, [a, b]) == (3, 0, 0)


def test_the_graph_is_still_there_afterwards():
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    term = (a * a).sum()
    flat_gradient(term, [a])
    term.backward()
    assert a.grad is not None
