import math

import pytest
import torch

from src.metrics.diversity import within_prompt_diversity


def test_it_is_the_mean_cosine_distance_of_pairs():
    # prompt 0: directions at 0, 90 and 180 degrees: distances 1, 2, 1; prompt 1: all alike, of other lengths
    first = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])
    second = torch.tensor([[1.0, 1], [2, 2], [0.5, 0.5]])
    found = within_prompt_diversity(torch.stack([first, second], dim=1))
    assert found.tolist() == pytest.approx([4 / 3, 0], abs=1e-6)
    pair = torch.tensor([[[1.0, 0]], [[math.cos(0.5), math.sin(0.5)]]])
    assert float(within_prompt_diversity(pair)) == pytest.approx(1 - math.cos(0.5), rel=1e-5)


def test_one_try_has_no_diversity():
    with pytest.raises(ValueError, match="at least two tries at each prompt, got 1"):
        within_prompt_diversity(torch.ones(1, 4, 8))
