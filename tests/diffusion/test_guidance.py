"""Guidance by a reward: the equation, where it acts, and that it raises the reward."""

import pytest
import torch
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.diffusion.guidance import RewardGuidance
from src.rewards.base import Reward, Score
from tests.diffusion import tiny


class Redness(Reward):
    fields = frozenset()

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(self.factor * (images[:, 0] - images[:, 2]).mean(dim=(1, 2)), {})


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator(num_steps=4)


def sampled(generator: Generator, guidance: RewardGuidance | None, rows: int = 2) -> Tensor:
    batch = tiny.ads(2)
    batch = {name: value[:rows] for name, value in batch.items()}
    conditions = generator.encode(batch)
    return generator.sample(conditions, guidance and guidance.steer(generator, conditions, batch))


def test_the_reward_rises_with_the_scale_and_scale_0_changes_nothing(generator):
    plain = sampled(generator, None)
    assert torch.equal(sampled(generator, RewardGuidance(Redness(), 0.0)), plain)
    values = [Redness()(plain, {}).value]
    values += [Redness()(sampled(generator, RewardGuidance(Redness(), s, start=0.0)), {}).value for s in (0.1, 0.3)]
    assert (values[1] > values[0]).all()
    assert (values[2] > values[1]).all()


def test_normalized_guidance_does_not_depend_on_the_rewards_scale_nor_on_the_batch(generator):
    guided = sampled(generator, RewardGuidance(Redness(), 0.2))
    torch.testing.assert_close(sampled(generator, RewardGuidance(Redness(1000.0), 0.2)), guided, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        sampled(generator, RewardGuidance(Redness(), 0.2), rows=1), guided[:1], atol=1e-4, rtol=0
    )


def test_the_push_is_the_gradient_in_the_latents_times_the_noise_level(generator):
    batch = tiny.ads(2)
    conditions = generator.encode(batch)
    x, i = conditions.noise, 2
    eps = generator.guide(*generator.noise(x, i, conditions)).detach()
    guided = RewardGuidance(Redness(), 3.0, normalize=False).guided(generator, x, eps, i, conditions, batch)
    leaf = x.clone().requires_grad_()
    image = generator.image(generator.estimate(leaf, eps, i), conditions)
    (gradient,) = torch.autograd.grad(Redness()(image, batch).value.sum(), leaf)
    level = (1 - generator.alpha_bars[i]) ** 0.5
    torch.testing.assert_close(eps - guided, 3.0 * level * gradient, atol=1e-6, rtol=1e-3)
    normalized = RewardGuidance(Redness(), 0.5).guided(generator, x, eps, i, conditions, batch)
    torch.testing.assert_close((eps - normalized).flatten(1).norm(dim=1), 0.5 * eps.flatten(1).norm(dim=1))


def test_it_acts_between_start_and_stop_only(generator):
    batch = tiny.ads(1)
    conditions = generator.encode(batch)
    guidance = RewardGuidance(Redness(), 0.5, start=0.25, stop=0.75)
    eps = torch.ones_like(conditions.noise)
    changed = [
        not torch.equal(guidance.guided(generator, conditions.noise, eps, i, conditions, batch), eps) for i in range(4)
    ]
    assert changed == [False, True, True, False]


def test_nan_and_impossible_settings_are_told(generator):
    with pytest.raises(
        ValueError, match=r"step 1, gradient of Redness: NaN or infinite for 2 of 2 images \(ad0, ad1\)"
    ):
        sampled(generator, RewardGuidance(Redness(float("nan")), 0.1))
    with pytest.raises(
        ValueError, match=r"guidance needs a reward, not Generator; choose one by guidance\.reward=NAME"
    ):
        RewardGuidance(generator)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start=0\.8 and stop=0\.5"):
        RewardGuidance(Redness(), start=0.8, stop=0.5)
    with pytest.raises(ValueError, match="scale=-1"):
        RewardGuidance(Redness(), scale=-1)
