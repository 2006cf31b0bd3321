"""A row of noise is a function of its seed and its key."""

import pytest
import torch

from src.diffusion.noise import keyed_noise, seeded_generator


def test_a_row_depends_on_its_seed_and_key_not_on_its_neighbours_or_the_global_state():
    both = keyed_noise(3, ["bed", "sofa"], (4, 8, 8))
    torch.manual_seed(1)
    assert torch.equal(keyed_noise(3, ["sofa"], (4, 8, 8)), both[1:])
    assert torch.equal(keyed_noise([7, 3], ["bed", "sofa"], (4, 8, 8))[1], both[1])
    assert not torch.equal(keyed_noise(4, ["sofa"], (4, 8, 8)), both[1:])
    with pytest.raises(ValueError, match="argument 2"):
        keyed_noise([1], ["bed", "sofa"], (1,))


def test_it_is_standard_normal_and_the_same_on_every_machine():
    noise = keyed_noise(0, [str(i) for i in range(64)], (1000,))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise[0] * noise[1]).mean())) < 0.15
    drawn = [int(torch.randint(1000, (), generator=seeded_generator(seed, "bed"))) for seed in range(3)]
    assert drawn == [206, 333, 718]
