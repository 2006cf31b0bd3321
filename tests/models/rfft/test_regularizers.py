"""CC and KL against numbers worked by hand and against the article's formulas, and what they are blind to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.build import build
from src.config import CONF, compose
from src.models.rfft.regularizers import KL, ConsistentCondition, NoRegularizer, Regularizer
from tests.diffusion import tiny

FORMS = [
    KL(1.0), KL(1.0, sigma=0.5, branch="text"), KL(1.0, reduction="sum"), ConsistentCondition(1.0),
    ConsistentCondition(1.0, reduction="mean"), ConsistentCondition(1.0, "authors"),
    ConsistentCondition(1.0, "authors", "mean"),
]  # fmt: skip


def pair(seed: int, shape: tuple[int, ...] = (2, 4, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    text, uncond = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return text, uncond


def test_numbers_worked_by_hand():
    # one picture of two latents; a = 0.64: (1 - a) / a = 0.5625, sqrt(1 - a) = 0.6; guidance scale 3
    tuned = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    reference = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 1.0]]]])
    # text differs by (2, -2), uncond by (-1, -1), the direction by (3, -1); guided: (-1, -1) + 3 (3, -1) = (8, -4)
    for regularizer, expected in (
        (KL(1.0, reduction="sum"), 0.5625 * 80 / 2),
        (KL(1.0, sigma=2.0), 0.5625 * 40 / 8),
        (KL(1.0, branch="text"), 0.5625 * 4 / 2),
        (ConsistentCondition(1.0), math.sqrt(10) / 0.6),
        (ConsistentCondition(1.0, reduction="mean"), math.sqrt(5) / 0.6),
        (ConsistentCondition(1.0, "authors"), 10.0),
        (ConsistentCondition(1.0, "authors", "mean"), 5.0),
    ):
        assert float(regularizer(tuned, reference, 0.64, 3.0)) == pytest.approx(expected, rel=1e-6)


def test_kl_is_that_of_torch_between_gaussians_around_the_estimates():
    tuned, reference, a, s, sigma = pair(0), pair(1), 0.7, 4.0, 0.3
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    means = []
    for text, uncond in (tuned, reference):
        eps = uncond + s * (text - uncond)
        means.append((x - math.sqrt(1 - a) * eps) / math.sqrt(a))
    gaussians = [torch.distributions.Normal(mean, sigma) for mean in means]
    expected = torch.distributions.kl_divergence(*gaussians).flatten(1).sum(dim=1)
    torch.testing.assert_close(KL(1.0, sigma, reduction="sum")(tuned, reference, a, s), expected)


def test_cc_is_the_norm_between_the_classifiers_gradients():
    tuned, reference, a = pair(0), pair(1), 0.7
    gradients = [-(text - uncond) / math.sqrt(1 - a) for text, uncond in (tuned, reference)]
    expected = torch.stack([(p - q).norm() for p, q in zip(*gradients, strict=True)])
    torch.testing.assert_close(ConsistentCondition(1.0)(tuned, reference, a, 3.0), expected)


def test_the_factors_of_both_terms_on_the_last_ten_of_forty_steps_of_stable_diffusion():
    painter = tiny.generator(num_steps=40)
    assert painter.timesteps[30:] == [226, 201, 176, 151, 126, 101, 76, 51, 26, 1]
    none = torch.zeros(1, 4, 8, 8)
    tuned, zero = (torch.ones_like(none), none), (none, none)
    levels = painter.alpha_bars[30:40]
    cc = [float(ConsistentCondition(1.0, reduction="mean")(tuned, zero, a, 1.0)) for a in levels]
    assert cc == pytest.approx([1.87, 2.01, 2.18, 2.40, 2.68, 3.06, 3.60, 4.50, 6.41, 24.2], rel=3e-3)
    kl = [2 * float(KL(1.0)(tuned, zero, a, 1.0)) for a in (levels[0], levels[-1])]
    assert kl == pytest.approx([0.40, 0.0017], rel=0.02)


@pytest.mark.parametrize("regularizer", FORMS, ids=lambda r: f"{type(r).__name__}-{vars(r)}")
def test_zero_with_zero_gradient_at_the_reference_and_positive_elsewhere(regularizer: Regularizer):
    reference = pair(0)
    tuned = reference[0].clone().requires_grad_(), reference[1].clone().requires_grad_()
    value = regularizer(tuned, reference, 0.5, 3.0)
    assert torch.equal(value, torch.zeros(2, dtype=torch.float64))
    gradients = torch.autograd.grad(value.sum(), tuned, allow_unused=True)
    assert all(g is None or torch.equal(g, torch.zeros_like(g)) for g in gradients)
    assert (regularizer(pair(1), reference, 0.5, 3.0) > 0.01).all()
    text, uncond = pair(1)
    rows = [
        regularizer((text[i : i + 1], uncond[i : i + 1]), (reference[0][i : i + 1], reference[1][i : i + 1]), 0.5, 3.0)
        for i in range(2)
    ]
    torch.testing.assert_close(torch.cat(rows), regularizer(pair(1), reference, 0.5, 3.0))


@settings(deadline=None, max_examples=30)
@given(shift=st.floats(-5, 5).filter(lambda v: abs(v) > 0.01), a=st.floats(0.05, 0.99), seed=st.integers(0, 99))
def test_cc_is_blind_to_a_shift_of_both_and_kl_is_not(shift: float, a: float, seed: int):
    reference = pair(seed)
    moved = reference[0] + shift, reference[1] + shift
    for form in ("paper", "authors"):
        assert float(ConsistentCondition(1.0, form)(moved, reference, a, 7.5).max()) < 1e-9
    expected = (1 - a) / a * shift**2 / 2
    torch.testing.assert_close(KL(1.0)(moved, reference, a, 7.5), torch.full((2,), expected, dtype=torch.float64))


def test_the_files_of_the_group_build_and_wrong_values_are_refused():
    names = sorted(path.stem for path in (CONF / "regularizer").glob("*.yaml"))
    assert names == ["cc", "cc_authors", "kl", "none"]
    for name in names:
        built = build(compose("fit", ["model=rfft", f"regularizer={name}"]).regularizer)
        assert isinstance(built, Regularizer)
        assert (built.beta == 0) == (name == "none")
        assert isinstance(built, NoRegularizer) == (name == "none")
    for make, words in (
        (lambda: KL(-1.0), "beta=-1.0"),
        (lambda: KL(1.0, sigma=0.0), "sigma=0.0"),
        (lambda: KL(1.0, branch="uncond"), "branch=uncond"),
        (lambda: ConsistentCondition(1.0, "squared"), "form must be paper or authors"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
