"""Map measures against pysaliency; `make test-parity` installs it in an environment of its own."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from benchmarks.saliency import Pysaliency, heat_maps
from src.metrics.saliency import auc_judd, cc, fixations, kld, nss, sim

if find_spec("pysaliency") is None:  # an import that fails for another reason is an error
    pytest.skip("pysaliency is not installed: make test-parity", allow_module_level=True)
metrics = import_module("pysaliency.metrics")
pytestmark = pytest.mark.parity

PREDICTED, TRUTH = heat_maps(8, 96)
FIXATED = fixations(TRUTH)
PAIRS = list(zip(PREDICTED.double().numpy(), TRUTH.double().numpy(), strict=True))


def agree(found: torch.Tensor, expected: list[float]) -> None:
    assert found.tolist() == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_nss():
    """Its standard deviation is that of the population."""
    agree(nss(PREDICTED, FIXATED, 0), [metrics.NSS(p, *np.nonzero(g)[::-1]).mean() for p, g in PAIRS])


def test_cc():
    agree(cc(PREDICTED, TRUTH), [metrics.CC(p, g) for p, g in PAIRS])
    agree(cc(0 * PREDICTED[:1], TRUTH[:1]), [metrics.CC(0 * PAIRS[0][0], PAIRS[0][1])])


def test_sim():
    """It does not map the range; with the maps scaled before, it does as MIT's."""
    agree(sim(PREDICTED, TRUTH, min_max=False), [metrics.SIM(p, g) for p, g in PAIRS])
    scaled = [((p - p.min()) / np.ptp(p), (g - g.min()) / np.ptp(g)) for p, g in PAIRS]
    agree(sim(PREDICTED, TRUTH), [metrics.SIM(p, g) for p, g in scaled])
    agree(sim(0 * PREDICTED[:1], TRUTH[:1]), [metrics.SIM(0 * PAIRS[0][0], PAIRS[0][1])])


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_kld():
    agree(kld(PREDICTED, TRUTH), [metrics.MIT_KLDiv(p, g) for p, g in PAIRS])
    agree(kld(0 * PREDICTED[:1], TRUTH[:1]), [metrics.MIT_KLDiv(0 * PAIRS[0][0], PAIRS[0][1])])


@pytest.mark.parametrize("levels", [None, 8, 1])
@pytest.mark.parametrize(("negatives", "name"), [("other", "unfixated"), ("all", "uniform")])
@pytest.mark.parametrize("thresholds", ["fixations", "all"])
def test_auc(levels: int | None, negatives: str, name: str, thresholds: str):
    """Without ties, with many, and with maps that are constant."""
    maps = PREDICTED if levels is None else (PREDICTED * (levels - 1)).round() / levels
    agree(auc_judd(maps, FIXATED, negatives, thresholds), Pysaliency(maps, FIXATED).auc(name, thresholds))


def test_auc_judd_with_jitter():
    assert float(auc_judd(PREDICTED, FIXATED).mean()) == pytest.approx(
        Pysaliency(PREDICTED, FIXATED).auc_judd(), abs=1e-5
    )
