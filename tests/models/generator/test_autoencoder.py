"""The autoencoder: its loss, its latents' scale, and the folder that diffusers reads."""

from copy import deepcopy
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from src.data.batch import Batch
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.fit import fit
from src.models.generator.autoencoder import Autoencoder, edge_difference, scaled_difference
from src.runtime.checkpoint import ABOUT, load, save
from tests.diffusion import tiny
from tests.models.generator.test_denoiser import configuration, data
from tests.models.stepping import Step, one_step


def autoencoder(**change: Any) -> Autoencoder:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8, 16), "layers_per_block": (0, 1, 1), "latent_channels": 4}
    return Autoencoder(**sizes | change)


def published(folder: Any) -> str:
    """A folder with an AutoencoderKL, as Stable Diffusion has one."""
    tiny.generator().vae.save_pretrained(folder)
    return str(folder)


def test_edges_are_differences_of_pixel_steps():
    a, b = torch.zeros(1, 1, 2, 3), torch.tensor([[[[0.0, 1, 1], [0, 1, 1]]]])
    # across: steps of 1, 0 in both rows, so a mean of 1/2; down: none
    assert float(edge_difference(a, b)) == pytest.approx(0.25)
    assert float(edge_difference(b, b + 3)) == 0  # a shift has no edges


def test_scales_are_the_same_differences_of_smaller_images():
    a, b = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = [tuple(F.avg_pool2d(x, side) for x in (a, b)) for side in (2, 4)]
    true = sum(float((x - y).abs().mean() + edge_difference(x, y)) for x, y in small) / 2
    assert float(scaled_difference(a, b, 2)) == pytest.approx(true, rel=1e-5)
    assert float(scaled_difference(a, b, 0)) == 0


def taught(**change: Any) -> tuple[Any, Batch, Step, dict[str, Any]]:
    """The net before a step, ads, the step, and in it the images encoded and the latents decoded.

    Of an AutoencoderKL these are before (`coded`) and after its `post_quant_conv` (`latents`).
    """
    L.seed_everything(0, verbose=False)
    system, batch, found = autoencoder(**change), tiny.ads(8, size=16), {}
    batch["image"] = torch.rand(8, 3, 16, 16)
    net = deepcopy(system.net)
    system.net.encoder.register_forward_pre_hook(lambda _, args: found.update(images=args[0] / 2 + 0.5))
    system.net.decoder.register_forward_pre_hook(lambda _, args: found.update(latents=args[0]))
    if "pretrained" in change:
        system.net.post_quant_conv.register_forward_pre_hook(lambda _, args: found.update(coded=args[0].detach()))
    return net, batch, one_step(system, batch), found


def test_the_loss_is_reconstruction_at_three_sizes_and_edges_under_noise():
    net, _, step, found = taught(edge_weight=3.0, scale_weight=0.5, noise=0.25)
    with torch.no_grad():
        images, latents = found["images"], found["latents"]
        clean = net.encoder(2 * images - 1)
        noise = (latents - clean) / clean.std(dim=(0, 2, 3), keepdim=True)
        decoded = net.decoder(latents) / 2 + 0.5
        wrong = decoded - images
        across, down = wrong[..., 1:] - wrong[..., :-1], wrong[..., 1:, :] - wrong[..., :-1, :]
        l1, edges = wrong.abs().mean(), (across.abs().mean() + down.abs().mean()) / 2
        scales = scaled_difference(decoded, images, 2)
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), torch.full((4,), 0.25), rtol=0.2, atol=0)  # 128 of each
    assert step.loss == pytest.approx(float(l1 + 3 * edges + 0.5 * scales), rel=1e-5)
    for name, value in (("l1", l1), ("edges", edges), ("kl", 0.0)):
        assert float(step.logged[f"train/{name}"]) == pytest.approx(float(value), rel=1e-5)


def test_of_a_published_vae_the_loss_has_the_divergence(tmp_path):
    net, _, step, found = taught(pretrained=published(tmp_path), edge_weight=3.0, kl_weight=0.02)
    with torch.no_grad():
        images, latents = found["images"], found["coded"]
        mean, log_variance = net.quant_conv(net.encoder(2 * images - 1)).chunk(2, dim=1)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1).mean() / 2
        decoded = net.decoder(net.post_quant_conv(latents)) / 2 + 0.5
        l1, edges = (decoded - images).abs().mean(), edge_difference(decoded, images)
    assert float(((latents - mean) / (log_variance / 2).exp()).std()) == pytest.approx(1, abs=0.1)  # 512 of them
    assert step.loss == pytest.approx(float(l1 + 3 * edges + 0.02 * kl), rel=1e-5)
    assert float(step.logged["train/kl"]) == pytest.approx(float(kl), rel=1e-5)


def test_a_crop_is_a_square_anywhere_in_each_image():
    _, batch, _, found = taught(crop=8, products=0.0)
    assert found["images"].shape == (8, 3, 8, 8)
    corners = set()
    for row, part in enumerate(found["images"]):
        places = [
            (i, j)
            for true in (batch["image"][row], batch["image"][row].flip(-1))
            for i in range(9)
            for j in range(9)
            if torch.allclose(part, true[:, i : i + 8, j : j + 8], atol=1e-5)
        ]
        assert len(places) == 1
        corners.update(places)
    assert len(corners) > 4
    for crop in (-8, 6):
        with pytest.raises(ValueError, match=f"crop={crop} must be 0 or a positive multiple of 4 px"):
            autoencoder(crop=crop)


@pytest.mark.parametrize(("products", "kinds"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_a_share_of_images_is_the_product_alone_on_white(products, kinds):
    _, batch, _, found = taught(products=products)
    white = torch.where(batch["product"][:, 3:] > 0, batch["product"][:, :3], 1.0)  # alpha is 0 or 1
    known = {
        (alone, turned): true.flip(-1) if turned else true
        for alone, true in ((False, batch["image"]), (True, white))
        for turned in (False, True)
    }
    told = [
        key
        for row, image in enumerate(found["images"])
        for key, true in known.items()
        if torch.allclose(image, true[row], atol=1e-5)
    ]
    assert len(told) == 8
    assert {alone for alone, _ in told} == kinds
    assert {turned for _, turned in told} == {False, True}


def test_a_run_learns_scales_its_latents_and_ends_in_a_folder_of_diffusers(tmp_path):
    L.seed_everything(0, verbose=False)
    system = autoencoder(lr=1e-2)
    source = data()
    node = {"_target_": "src.models.generator.autoencoder.Autoencoder", "block_out_channels": [4, 8, 16]}
    config = configuration(tmp_path, model=node, dtype="float16")
    images = next(iter(source.batches("train")))["image"]
    start = float((system(images) - images).detach().abs().mean())
    config["trainer"]["max_steps"] = 40
    metrics = fit(system, source, config)
    assert set(metrics) == {"test/l1", "test/psnr", "test/ssim"}
    assert float((system(images) - images).abs().mean()) < 0.7 * start
    folder = tmp_path / "checkpoint"
    net: Any = ResidualAutoencoder.from_pretrained(folder, torch_dtype=torch.float32)
    latents = torch.cat([net.encode(2 * b["image"] - 1).latents for b in source.batches("val")])
    channels = latents.transpose(0, 1).flatten(1)  # mean and deviation are stored as float16
    torch.testing.assert_close(channels.std(dim=1, correction=0), torch.ones(4), rtol=3e-3, atol=0)
    torch.testing.assert_close(channels.mean(dim=1), torch.zeros(4), rtol=0, atol=3e-3)
    assert net.config.scaling_factor == 1
    again: Any = load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), system.net.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.net.buffers(), system.net.buffers(), strict=True))
    assert (tmp_path / "figures/reconstructions.png").is_file()
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(ValueError, match="must be in"):
        autoencoder(products=1.5)


def test_a_published_vae_gets_a_scaling_factor(tmp_path):
    system, source = autoencoder(pretrained=published(tmp_path / "old")), data()
    config = configuration(tmp_path / "new", model={"_target_": "src.models.generator.autoencoder.Autoencoder"})
    fit(system, source, config)
    net: Any = AutoencoderKL.from_pretrained(tmp_path / "new/checkpoint")
    latents = torch.cat([net.encode(2 * b["image"] - 1).latent_dist.mode() for b in source.batches("val")])
    assert float((latents * net.config.scaling_factor).std(correction=0)) == pytest.approx(1, rel=1e-3)
    again: Any = load(tmp_path / "new/checkpoint")
    assert again.net.config.scaling_factor == system.net.config.scaling_factor


def test_a_decoder_learns_on_with_the_latents_as_they_are(tmp_path):
    system = autoencoder(pretrained=published(tmp_path / "old"), decoder_only=True, lr=1e-2)
    before = {name: weight.clone() for name, weight in system.net.named_parameters()}
    scale = system.net.config.scaling_factor
    config = configuration(tmp_path / "new", model={"_target_": "src.models.generator.autoencoder.Autoencoder"})
    fit(system, data(), config)
    moved = {
        name.split(".")[0] for name, weight in system.net.named_parameters() if not torch.equal(weight, before[name])
    }
    assert moved == {"decoder", "post_quant_conv"}
    assert system.net.config.scaling_factor == scale
    with pytest.raises(ValueError, match="needs pretrained"):
        autoencoder(decoder_only=True)


def test_what_lies_in_a_folder_of_old_is_gone_after_saving(tmp_path):
    system = autoencoder()
    about = dict.fromkeys(ABOUT, "x")
    (tmp_path / "model.safetensors").write_bytes(b"old")
    save(tmp_path, system, {"_target_": "src.models.generator.autoencoder.Autoencoder"}, {}, about)
    assert not (tmp_path / "model.safetensors").exists()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"no ResidualAutoencoder could be loaded"):
        load(tmp_path)


def test_non_finite_decoded_images_are_an_error_with_their_keys():
    system, batch = autoencoder(), {"key": ["a", "b"], "image": torch.rand(2, 3, 32, 32)}
    batch["image"][1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"^decoded images: NaN or infinite for 1 of 2 images \(b\)"):
        system.evaluation_step(batch, "val")
