"""The ResidualAutoencoder: its latents, low precision, checkpointing and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.models.generator.trainable import Trainable
from tests.diffusion import tiny


def images(count: int = 2, size: int = 32) -> Tensor:
    return 2 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) - 1


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3), correction=0)


def test_normalized_latents_are_standard_and_decode_to_the_same_images():
    net: Any = tiny.residual_autoencoder()
    x = images()
    with torch.no_grad():
        before = net(x).sample
        for _ in range(2):  # the second time nothing is left to do
            net.normalize(*moments(net.encode(x).latents))
            mean, deviation = moments(net.encode(x).latents)
            torch.testing.assert_close(mean, torch.zeros(4), atol=1e-5, rtol=0)
            torch.testing.assert_close(deviation, torch.ones(4))
        assert net.encode(x).latents.shape == (2, 4, 8, 8)
        torch.testing.assert_close(net(x).sample, before, atol=1e-5, rtol=0)


def test_what_is_far_from_a_crop_does_not_change_it():
    net, x = tiny.residual_autoencoder(), images(1, 128)
    other = x.clone()
    other[..., 96:, 96:] = 0
    with torch.no_grad():
        kept, changed = (net(image).sample[..., :32, :32] for image in (x, other))
    torch.testing.assert_close(kept, changed, atol=1e-6, rtol=0)


def test_a_frozen_one_generates_in_bfloat16_and_comes_back_exactly():
    generator = tiny.generator()
    generator.vae = tiny.residual_autoencoder().requires_grad_(False)
    trainable, batch = Trainable(generator, "unet"), tiny.ads(1)
    before = generator.sample(generator.encode(batch))
    trainable.cast_frozen_to_bf16()
    assert (generator.vae.dtype, generator.vae.mean.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad(), trainable.low_precision():
        low = generator.sample(generator.encode(batch))
    torch.testing.assert_close(low, before, atol=0.1, rtol=0)
    trainable.restore_float32()
    assert torch.equal(generator.sample(generator.encode(batch)), before)


def test_checkpointing_keeps_no_activations_of_the_decoder_and_changes_no_gradient():
    found, latents = [], torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for checkpointing in (False, True):
        net, z = tiny.residual_autoencoder().requires_grad_(False), latents.clone().requires_grad_()
        if checkpointing:
            net.enable_gradient_checkpointing()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            image: Any = net.decode(z)
            image.sample.square().mean().backward()
        found.append((z.grad, sum(x.numel() for x in kept)))
    (plain, many), (checkpointed, few) = found
    torch.testing.assert_close(checkpointed, plain)
    assert few < many / 4


def test_sizes_that_do_not_fit_are_refused():
    for layers in ((1, 1), (1, 0, 1)):
        with pytest.raises(ValueError, match=r"layers_per_block=\(1, .* only the first may be 0"):
            ResidualAutoencoder(block_out_channels=(8, 8, 16), layers_per_block=layers)
    with pytest.raises(ValueError, match="latent_channels=3 must divide"):
        ResidualAutoencoder(latent_channels=3)


def test_constant_or_non_finite_latents_are_refused():
    for mean, deviation in ((0.0, 0.0), (0.0, torch.nan), (torch.inf, 1.0)):
        with pytest.raises(ValueError, match=f"have mean .*{mean}.* and standard deviation .*{deviation}"):
            tiny.residual_autoencoder().normalize(torch.tensor([0.0, 0, 0, mean]), torch.tensor([1.0, 1, 1, deviation]))
