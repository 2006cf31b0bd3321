"""The loss within groups, by hand and against torch's own for padded groups."""

import math

import pytest
import torch
import torch.nn.functional as F

from src.models.hps.loss import group_log_softmax, group_loss


def test_unequal_groups_by_hand():
    logits, groups = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]), torch.tensor([7, 7, 3, 3, 3])
    chosen = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    pair, three = math.log(1 + math.e), math.log(1 + 2 * math.exp(-2))
    found = group_loss(logits, groups, chosen)
    assert found.loss.item() == pytest.approx((pair + three) / 2, abs=1e-6)
    assert found.chance.item() == pytest.approx((math.log(2) + math.log(3)) / 2, abs=1e-6)


def test_weights_are_those_of_groups():
    logits, groups = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 1])
    chosen, weight = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([3.0, 3.0, 0.5, 0.5, 0.5])
    pair, three = math.log(1 + math.e), math.log(1 + 2 * math.exp(-2))
    assert group_loss(logits, groups, chosen, weight).loss.item() == pytest.approx(
        (3 * pair + three / 2) / 3.5, abs=1e-6
    )


def test_ties_and_shares_have_the_loss_0_at_their_best_and_the_gradient_of_cross_entropy():
    chosen, groups = torch.tensor([0.5, 0.5, 0.2, 0.7, 0.1]), torch.tensor([0, 0, 1, 1, 1])
    best = chosen.log().requires_grad_()
    loss, chance = group_loss(best, groups, chosen)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    entropy = -sum(p * math.log(p) for p in (0.2, 0.7, 0.1))
    assert chance.item() == pytest.approx((0 + math.log(3) - entropy) / 2, abs=1e-6)
    logits = torch.randn(3, requires_grad=True)
    (ours,) = torch.autograd.grad(group_loss(logits, groups[2:], chosen[2:]).loss, logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits[None], chosen[None, 2:]), logits)
    torch.testing.assert_close(ours, theirs)


def test_it_is_the_cross_entropy_of_padded_groups_in_any_order():
    torch.manual_seed(0)
    sizes, logits = [2, 4, 3, 2], torch.full((4, 4), -999.0)
    for row, size in enumerate(sizes):
        logits[row, :size] = 20 * torch.randn(size)
    choice = torch.tensor([1, 3, 0, 0])
    there = logits > -999
    groups = torch.arange(4)[:, None].expand(4, 4)[there]
    chosen = F.one_hot(choice, 4).float()[there]
    order = torch.randperm(len(groups))
    found = group_loss(logits[there][order], groups[order], chosen[order]).loss
    torch.testing.assert_close(found, F.cross_entropy(logits, choice))


def test_groups_without_a_choice_or_alternative_do_not_count():
    logits, groups = torch.randn(5), torch.tensor([0, 0, 1, 2, 2])
    chosen = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(
        group_loss(logits, groups, chosen).loss, group_loss(logits[:2], groups[:2], chosen[:2]).loss
    )
    nothing = group_loss(logits[2:].requires_grad_(), groups[2:], chosen[2:])
    assert nothing.loss == nothing.chance == 0


def test_large_logits_do_not_overflow():
    logits = torch.tensor([1e4, 0.0, -1e4], requires_grad=True)
    found = group_log_softmax(logits, torch.zeros(3, dtype=torch.long))
    assert found.tolist() == [0.0, -1e4, -2e4]
    group_loss(logits, torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])).loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
