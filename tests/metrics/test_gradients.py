"""Gradients of two terms and the cosine between them, compared with values worked out by hand."""

import pytest
import torch

from src.metrics.gradients import flat_gradient


def test_gradients_of_two_terms_by_hand():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    first, second = flat_gradient(3 * a[0] + 4 * b, [a, b]), flat_gradient((a * a).sum(), [a, b])
    assert first.tolist() == [3, 0, 4]
    assert second.tolist() == [2, 4, 0]  # it does not depend on b
    assert float(torch.cosine_similarity(first, second, dim=0)) == pytest.approx(6 / (5 * 20**0.5))


def test_means_show_the_angle_that_single_batches_hide():
    """Two opposed gradients with noise of four times their norm."""
    noise = torch.Generator().manual_seed(0)
    first, second = 4 * torch.randn(2, 4000, 1000, generator=noise) / 1000**0.5
    first[:, 0] += 1
    second[:, 0] -= 1
    single = torch.cosine_similarity(first, second, dim=1).mean()
    assert float(single) == pytest.approx(-1 / 17, abs=0.01)  # 1 / (1 + 16)
    assert float(torch.cosine_similarity(first.mean(dim=0), second.mean(dim=0), dim=0)) == pytest.approx(-1, abs=0.01)


def test_the_graph_is_still_there_afterwards():
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    term = (a * a).sum()
    flat_gradient(term, [a])
    term.backward()
    assert a.grad is not None
