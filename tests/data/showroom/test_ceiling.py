import numpy as np
import pytest

from src.data.showroom.ceiling import ceiling
from src.data.showroom.feedback import SHARPNESS, ranking


def test_equal_utilities_are_a_guess():
    assert ceiling([np.ones(4)]) == pytest.approx({"oracle": 0.25, "person": 0.25, "random": 0.25})


def test_it_is_what_simulated_people_reach():
    rng, utilities = np.random.default_rng(0), np.array([0.7, 0.6, 0.5]) * 8 / SHARPNESS
    found = ceiling([utilities])
    first, second = (np.array([ranking(utilities, rng).argmin() for _ in range(4000)]) for _ in range(2))
    assert found["oracle"] == pytest.approx((first == 0).mean(), abs=0.03)
    assert found["person"] == pytest.approx((first == second).mean(), abs=0.03)
    assert found["random"] < found["person"] < found["oracle"]
