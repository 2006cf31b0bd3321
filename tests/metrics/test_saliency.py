"""Map measures against numbers worked by hand, scikit-learn, SciPy and a plain reading of the MIT benchmark's code."""

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from src.metrics.saliency import Conventions, Saliency, auc_judd, cc, fixations, kld, mse, nss, sim

MEASURES = {"mse": mse, "kld": kld, "sim": sim, "cc": cc}
POINT = {"nss": nss, "auc_judd": auc_judd}


def judd_loop(predicted: np.ndarray, fixated: np.ndarray, negatives: str = "other") -> float:
    """One threshold after the other, counted in the whole map; a threshold shared by several fixations once."""
    at, others = predicted[fixated], predicted[~fixated] if negatives == "other" else predicted.ravel()
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(at.tolist()), reverse=True):
        curve.append((float((others >= threshold).mean()), float((at >= threshold).mean())))
    curve.append((1.0, 1.0))
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(curve))


def discs(num: int = 4, size: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predicted maps with a sigmoid's floor and true maps of one to four discs by three raters."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((num, size, size))
    for sample in range(num):
        for _ in range(1 + sample % 4):
            row, column = rng.integers(0, size, 2)
            truth[sample] += ((y - row) ** 2 + (x - column) ** 2 <= (size / 12) ** 2) / 3
    predicted = 1 / (1 + np.exp(3 - 2 * truth - rng.normal(size=truth.shape)))
    return torch.from_numpy(predicted).float(), torch.from_numpy(truth).float().clamp_max(1)


@st.composite
def maps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two maps of few levels, so of many ties; the true one has a fixation and a pixel that is none."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    level = st.integers(0, 6).map(lambda k: k / 6)
    pixels = st.lists(level, min_size=height * width, max_size=height * width)
    found, true = (torch.tensor(draw(pixels)).view(1, height, width) for _ in range(2))
    true[0, 0, 0], true[0, -1, -1] = 0, 1
    return found, true


def every(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    fixated = fixations(truth)
    found = {name: measure(predicted, truth) for name, measure in MEASURES.items()}
    return found | {name: measure(predicted, fixated) for name, measure in POINT.items()}


def test_a_map_of_four_pixels_by_hand():
    predicted, truth = torch.tensor([[[0.4, 0.2], [0.1, 0.1]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    fixated = fixations(truth)
    assert mse(predicted, truth).item() == pytest.approx((0.36 + 0.04 + 0.81 + 0.01) / 4)
    # mean 0.2, squares of deviations 0.04 + 0 + 0.01 + 0.01; at the fixations 0.25
    assert nss(predicted, fixated).item() == pytest.approx(0.05 / math.sqrt(0.06 / 3), rel=1e-5)
    assert nss(predicted, fixated, correction=0).item() == pytest.approx(0.05 / math.sqrt(0.06 / 4), rel=1e-5)
    # p = 0.5, 0.25, 0.125, 0.125 and g = 0.5, 0, 0.5, 0
    assert kld(predicted, truth).item() == pytest.approx(0.5 * math.log(4), rel=1e-5)
    assert kld(predicted, truth, epsilon=1).item() == pytest.approx(
        0.5 * math.log(1 + 0.5 / 1.5) + 0.5 * math.log(1 + 0.5 / 1.125), rel=1e-5
    )
    assert sim(predicted, truth, min_max=False).item() == pytest.approx(0.625)
    assert sim(predicted, truth).item() == pytest.approx(0.5)  # p = 0.75, 0.25, 0, 0
    assert cc(predicted, truth).item() == pytest.approx(0.1 / math.sqrt(0.06), rel=1e-5)
    # positives 0.4 and 0.1, others 0.2 and 0.1: of the four pairs two are in order, one is a tie
    assert auc_judd(predicted, fixated, thresholds="all").item() == 0.625
    # thresholds 0.4 and 0.1: (0, 0) to (0, 0.5) to (1, 1)
    assert auc_judd(predicted, fixated).item() == 0.75
    # against all four, whose ties with themselves are half a pair: 0.4 has 3.5 of 4, 0.1 has 1 of 4
    assert auc_judd(predicted, fixated, "all", "all").item() == 0.5625
    assert auc_judd(predicted, fixated, "all").item() == pytest.approx(judd_loop(*both(predicted, fixated), "all"))


def both(predicted: Tensor, fixated: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return predicted[0].numpy().astype(np.float64), fixated[0].numpy()


def test_agrees_with_a_plain_reading_of_the_mit_code():
    predicted, truth = discs()
    found = every(predicted, truth)
    for sample, (p, g) in enumerate(zip(predicted.double().numpy(), truth.double().numpy(), strict=True)):
        z, low, high = (p - p.mean()) / p.std(ddof=1), p.min(), p.max()
        scaled, density = (p - low) / (high - low), g / g.max()
        eps = 2.2204e-16
        expected = {
            "mse": ((p - g) ** 2).mean(),
            "kld": (g / g.sum() * np.log(eps + g / g.sum() / (p / p.sum() + eps))).sum(),
            "sim": np.minimum(scaled / scaled.sum(), density / density.sum()).sum(),
            "cc": stats.pearsonr(p.ravel(), g.ravel())[0],
            "nss": z[g > 0].mean(),
            "auc_judd": judd_loop(p, g > 0),
        }
        assert {name: float(values[sample]) for name, values in found.items()} == pytest.approx(expected, abs=2e-6)


@settings(deadline=None)
@given(maps())
def test_auc_with_ties_is_that_of_scikit_learn_and_of_the_loop(pair: tuple[Tensor, Tensor]):
    predicted, fixated = pair[0], fixations(pair[1])
    p, at = both(predicted, fixated)
    exact = roc_auc_score(at.ravel(), p.ravel())
    assert auc_judd(predicted, fixated, thresholds="all").item() == pytest.approx(exact, abs=1e-6)
    assert 1 - auc_judd(-predicted, fixated, thresholds="all").item() == pytest.approx(exact, abs=1e-6)
    for negatives in ("other", "all"):
        loop = judd_loop(p, at, negatives)
        assert auc_judd(predicted, fixated, negatives).item() == pytest.approx(loop, abs=1e-6)


@settings(deadline=None)
@given(maps())
def test_properties_of_all_measures(pair: tuple[Tensor, Tensor]):
    predicted, truth = pair
    found = every(predicted, truth)
    assert all(values.isfinite().all() for values in found.values())
    assert all(-1e-6 <= found[name] <= 1 + 1e-6 for name in ("mse", "sim", "auc_judd"))
    assert -1 <= found["cc"] <= 1
    assert found["kld"] > -1e-6
    fixated = fixations(truth)
    for rising in (predicted**3, predicted.exp() - 5, 1e-30 * predicted):
        assert torch.equal(auc_judd(rising, fixated), found["auc_judd"])
    for affine in (0.25 * predicted + 2, 1e-30 * predicted):
        torch.testing.assert_close(nss(affine, fixated), found["nss"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cc(affine, truth), found["cc"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sim(affine, truth), found["sim"], atol=1e-4, rtol=1e-4)
    for moved in (lambda m: m.flip(1), lambda m: m.flip(2), lambda m: m.transpose(1, 2)):
        for name, values in every(moved(predicted), moved(truth)).items():
            torch.testing.assert_close(values, found[name], atol=1e-5, rtol=1e-5)
    same = every(truth, truth)
    assert [same["mse"].item(), same["auc_judd"].item()] == [0, 1]
    assert [same["sim"].item(), same["cc"].item(), same["kld"].item()] == pytest.approx([1, 1, 0], abs=1e-5)


def test_a_batch_of_one_is_a_row_of_a_batch():
    predicted, truth = discs(6)
    whole = every(predicted, truth)
    for row in range(6):
        for name, values in every(predicted[row : row + 1], truth[row : row + 1]).items():
            torch.testing.assert_close(values[0], whole[name][row], atol=1e-6, rtol=1e-6)
    assert torch.equal(auc_judd(predicted[2:3], fixations(truth[2:3]))[0], whole["auc_judd"][2])


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_named_results_of_a_constant_prediction(level: float):
    truth = discs(1)[1]
    found = every(torch.full_like(truth, level), truth)
    assert [found[name].item() for name in ("nss", "cc", "auc_judd")] == [0, 0, 0.5]
    uniform = every(torch.ones_like(truth), truth)
    assert (found["kld"], found["sim"]) == (uniform["kld"], uniform["sim"])
    share = float((truth > 0).float().mean())
    binary = (truth > 0).float()
    assert sim(torch.full_like(truth, level), binary).item() == pytest.approx(share, rel=1e-5)
    assert kld(torch.full_like(truth, level), binary).item() == pytest.approx(-math.log(share), rel=1e-5)


def test_named_results_of_a_constant_truth():
    predicted = discs(1)[0]
    found = every(predicted, torch.full_like(predicted, 0.7))
    assert [found["cc"].item(), found["auc_judd"].item()] == [0, 0.5]
    assert found["nss"].item() == pytest.approx(0, abs=1e-5)
    assert all(values.isfinite().all() for values in found.values())
    everything = torch.ones_like(predicted, dtype=torch.bool)
    assert auc_judd(predicted, everything, "all", "all").item() == 0.5
    one = torch.ones(1, 1, 1)
    assert [float(value) for value in every(one, one).values()] == pytest.approx([0, 0, 1, 0, 0, 0.5], abs=1e-6)


def test_a_single_fixation():
    predicted, fixated = torch.arange(5.0).view(1, 1, 5), torch.tensor([[[False, False, True, False, False]]])
    assert auc_judd(predicted, fixated, thresholds="all").item() == 0.5
    assert auc_judd(predicted, fixated).item() == 0.75  # (0, 0) to (0.5, 1) to (1, 1)


def test_maps_that_cannot_be_measured():
    predicted, truth = discs(3)
    broken, none = predicted.clone(), truth.clone()
    broken[1, 2, 3], none[1] = math.nan, 0
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match="predicted maps: 1 of 6912 values are not finite"):
            measure(broken, truth)
        with pytest.raises(ValueError, match="differ in shape"):
            measure(predicted[:, 1:], truth)
    for measure in POINT.values():
        with pytest.raises(ValueError, match="not finite"):
            measure(broken, fixations(truth))
        with pytest.raises(ValueError, match="maps 1: no pixel is a fixation"):
            measure(predicted, fixations(none))
        with pytest.raises(ValueError, match="bool of shape"):
            measure(predicted, truth)
    for measure in (kld, lambda p, g: sim(p, g, min_max=False)):
        with pytest.raises(ValueError, match="value -1 is negative"):
            measure(predicted - 1 - predicted.min(), truth)
    with pytest.raises(ValueError, match="negatives 'none': choose from other, all"):
        auc_judd(predicted, fixations(truth), negatives="none")
    for shape in ((4, 5), (2, 0, 5), (2, 1, 4, 5)):
        with pytest.raises(ValueError, match="batch, height, width"):
            mse(torch.zeros(shape), torch.zeros(shape))
    assert all(values.shape == (0,) for values in every(predicted[:0], truth[:0]).values())


def test_batches_add_up_whatever_their_sizes():
    """A mean of the means of batches would weigh the last, short one more."""
    predicted, truth = discs(7)
    truth[[1, 6]] = 0
    metric = Saliency()
    for rows in (slice(0, 4), slice(4, 6), slice(6, 7)):
        metric.update(predicted[rows], truth[rows])
    found = {name: float(value) for name, value in metric.compute().items()}
    some = truth.flatten(1).any(dim=1)
    expected = {name: float(values.mean()) for name, values in every(predicted[some], truth[some]).items()}
    expected["mse"] = float(mse(predicted, truth).mean())
    expected["mse_empty"] = float(mse(predicted, truth)[~some].mean())
    assert found == pytest.approx(expected | {"num": 7, "num_empty": 2, "num_fixated": 5}, rel=1e-5)


def test_what_has_no_sample_is_left_out():
    predicted, truth = discs(2)
    metric = Saliency()
    metric.update(predicted, 0 * truth)
    assert set(metric.compute()) == {"mse", "mse_empty", "num", "num_empty", "num_fixated"}
    metric.reset()
    metric.update(predicted, truth)
    assert "mse_empty" not in metric.compute()
    strict = Saliency(Conventions(fixation_threshold=0.5))
    strict.update(predicted, truth.clamp_max(1 / 3))
    found = strict.compute()
    assert found.keys() >= {"kld", "sim", "cc"}
    assert not found.keys() & {"nss", "auc_judd"}
    assert [int(found[name]) for name in ("num", "num_empty", "num_fixated")] == [2, 0, 0]
    with pytest.raises(ValueError, match="not finite"):
        metric.update(predicted / 0, truth)


def test_every_convention_changes_its_measure():
    predicted, truth = discs(4, seed=1)
    truth[0, :24] = truth[0, :24].clamp_min(2 / 3)

    def measured(**conventions) -> dict[str, float]:
        metric = Saliency(Conventions(**conventions))
        metric.update(predicted, truth)
        return {name: float(value) for name, value in metric.compute().items()}

    default = measured()
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"fixation_threshold": 0.5}, {"nss", "auc_judd", "num_fixated"}),
        ({"nss_correction": 0}, {"nss"}),
        ({"kld_epsilon": 1e-3}, {"kld"}),
        ({"auc_negatives": "all"}, {"auc_judd"}),
        ({"auc_thresholds": "all"}, {"auc_judd"}),
        ({"sim_min_max": False}, {"sim"}),
        ({"size": (24, 24)}, {"mse", "kld", "sim", "cc", "nss", "auc_judd"}),
        ({"size": (48, 48)}, set()),
    ]
    for conventions, changed in cases:
        found = measured(**conventions)
        assert {name for name in default if found[name] != default[name]} == changed, conventions
        assert asdict(Saliency(Conventions(**conventions)).conventions).items() >= conventions.items()


def test_maps_are_resized_with_antialiasing():
    predicted, truth = discs(2)

    def measured(predicted: Tensor, truth: Tensor, **conventions) -> dict[str, Tensor]:
        metric = Saliency(Conventions(**conventions))
        metric.update(predicted, truth)
        return metric.compute()

    half = [
        F.interpolate(maps[:, None], (20, 30), mode="bilinear", antialias=True)[:, 0] for maps in (predicted, truth)
    ]
    assert measured(predicted, half[1]) == measured(*half)
    assert measured(predicted, truth, size=(20, 30)) == measured(*half)
