import math

import pytest
import torch

from src.metrics.diversity import between_prompt_diversity, within_prompt_dissimilarity, within_prompt_diversity


def test_it_is_the_mean_cosine_distance_of_pairs():
    # prompt 0: directions at 0, 90 and 180 degrees: distances 1, 2, 1; prompt 1: all alike, of other lengths
    first = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])
    second = torch.tensor([[1.0, 1], [2, 2], [0.5, 0.5]])
    found = within_prompt_diversity(torch.stack([first, second], dim=1))
    assert found.tolist() == pytest.approx([4 / 3, 0], abs=1e-6)
    pair = torch.tensor([[[1.0, 0]], [[math.cos(0.5), math.sin(0.5)]]])
    assert float(within_prompt_diversity(pair)) == pytest.approx(1 - math.cos(0.5), rel=1e-5)


def test_between_prompts_it_is_the_mean_distance_from_the_others_of_the_same_try():
    # try 0: directions at 0, 90 and 180 degrees; try 1: all alike
    features = torch.tensor([[[1.0, 0], [0, 2], [-3, 0]], [[1.0, 1], [2, 2], [3, 3]]])
    assert between_prompt_diversity(features[:1]).tolist() == pytest.approx([1.5, 1, 1.5])
    assert between_prompt_diversity(features).tolist() == pytest.approx([0.75, 0.5, 0.75])
    assert between_prompt_diversity(features[1:]).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    alone = between_prompt_diversity(features[:, :1])
    assert alone.shape == (1,)
    assert alone.isnan().all()


def test_one_try_has_no_diversity():
    with pytest.raises(ValueError, match="at least two tries per prompt, got 1"):
        within_prompt_diversity(torch.ones(1, 4, 8))
    with pytest.raises(ValueError, match="at least two tries per prompt, got 1"):
        within_prompt_dissimilarity(torch.ones(1, 4, 3, 32, 32))


def test_dissimilarity_is_one_less_the_mean_ssim_of_pairs():
    # flat pictures of grey a and b: SSIM = (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2
    greys = torch.tensor([[0.2, 0.5], [0.8, 0.5], [0.4, 0.5]])  # tries, prompts
    pictures = greys[:, :, None, None, None].expand(3, 2, 3, 24, 24)

    def ssim(a: float, b: float) -> float:
        return (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)

    expected = 1 - (ssim(0.2, 0.8) + ssim(0.2, 0.4) + ssim(0.8, 0.4)) / 3
    assert within_prompt_dissimilarity(pictures).tolist() == pytest.approx([expected, 0], abs=1e-4)
    noise = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(within_prompt_dissimilarity(noise)) == pytest.approx(1, abs=0.02)  # structures that share nothing
