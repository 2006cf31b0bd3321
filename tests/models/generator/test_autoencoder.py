"""The VAE: its loss, its scale, and the folder that diffusers reads."""

from copy import deepcopy
from typing import Any

import lightning as L
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from src.data.batch import Batch
from src.fit import fit
from src.models.generator.autoencoder import Autoencoder, edge_difference
from src.runtime.checkpoint import ABOUT, load, save
from tests.diffusion import tiny
from tests.models.generator.test_denoiser import configuration, data
from tests.models.stepping import Step, one_step


def autoencoder(**change: Any) -> Autoencoder:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return Autoencoder(**sizes | change)


def test_edges_are_differences_of_pixel_steps():
    a, b = torch.zeros(1, 1, 2, 3), torch.tensor([[[[0.0, 1, 1], [0, 1, 1]]]])
    # across: steps of 1, 0 in both rows, so a mean of 1/2; down: none
    assert float(edge_difference(a, b)) == pytest.approx(0.25)
    assert float(edge_difference(b, b + 3)) == 0  # a shift has no edges


def test_from_nothing_residual_branches_are_silent_and_what_remains_is_straight():
    net = autoencoder(block_out_channels=(4, 8, 8)).net
    features = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for block in (net.encoder.mid_block, net.decoder.mid_block):  # resnet, attention, resnet
        same = block(features)
        bias = block.attentions[0].to_out[0].bias[None, :, None, None]
        torch.testing.assert_close(same, features + bias)
    wide = net.encoder.down_blocks[1].resnets[0]  # 4 channels to 8, by a shortcut
    shown = wide(features[:, :4], None)
    torch.testing.assert_close(shown[:, :4], features[:, :4] + wide.conv_shortcut.bias[None, :4, None, None])
    halved = net.encoder.down_blocks[1].downsamplers[0]
    torch.testing.assert_close(halved(features), features[..., 1::2, 1::2] + halved.conv.bias[None, :, None, None])


def taught(**change: Any) -> tuple[Any, Batch, Step, dict[str, Any]]:
    """The net before a step, ads, the step, and in it the pictures encoded and the latents drawn."""
    L.seed_everything(0, verbose=False)
    system, batch, found = autoencoder(**change), tiny.ads(8, size=16), {}
    batch["image"] = torch.rand(8, 3, 16, 16)
    net = deepcopy(system.net)
    system.net.encoder.register_forward_pre_hook(lambda _, args: found.update(pictures=args[0] / 2 + 0.5))
    system.net.post_quant_conv.register_forward_pre_hook(lambda _, args: found.update(latents=args[0]))
    return net, batch, one_step(system, batch), found


def test_the_loss_is_reconstruction_and_edges_and_divergence():
    net, _, step, found = taught(edge_weight=3.0, kl_weight=0.02)
    with torch.no_grad():
        pictures, latents = found["pictures"], found["latents"]
        mean, log_variance = net.quant_conv(net.encoder(2 * pictures - 1)).chunk(2, dim=1)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1).mean() / 2
        wrong = net.decoder(net.post_quant_conv(latents)) / 2 + 0.5 - pictures
        across, down = wrong[..., 1:] - wrong[..., :-1], wrong[..., 1:, :] - wrong[..., :-1, :]
        l1, edges = wrong.abs().mean(), (across.abs().mean() + down.abs().mean()) / 2
    assert float(((latents - mean) / (log_variance / 2).exp()).std()) == pytest.approx(1, abs=0.1)  # 512 of them
    assert step.loss == pytest.approx(float(l1 + 3 * edges + 0.02 * kl), rel=1e-5)
    for name, value in (("l1", l1), ("edges", edges), ("kl", kl)):
        assert float(step.logged[f"train/{name}"]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(("products", "kinds"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_a_share_of_pictures_is_the_product_alone_on_white(products, kinds):
    _, batch, _, found = taught(products=products)
    white = torch.where(batch["product"][:, 3:] > 0, batch["product"][:, :3], 1.0)  # alpha is 0 or 1
    known = {
        (alone, turned): true.flip(-1) if turned else true
        for alone, true in ((False, batch["image"]), (True, white))
        for turned in (False, True)
    }
    told = [
        key
        for row, picture in enumerate(found["pictures"])
        for key, true in known.items()
        if torch.allclose(picture, true[row], atol=1e-5)
    ]
    assert len(told) == 8
    assert {alone for alone, _ in told} == kinds
    assert {turned for _, turned in told} == {False, True}


def test_a_run_learns_scales_its_latents_and_ends_in_a_folder_of_diffusers(tmp_path):
    L.seed_everything(0, verbose=False)
    system = autoencoder(lr=1e-2)
    source = data()
    node = {"_target_": "src.models.generator.autoencoder.Autoencoder", "block_out_channels": [4, 8, 8]}
    config = configuration(tmp_path, model=node, dtype="float16")
    pictures = next(iter(source.batches("train")))["image"]
    start = float((system(pictures) - pictures).detach().abs().mean())
    config["trainer"]["max_steps"] = 40
    metrics = fit(system, source, config)
    assert set(metrics) == {"test/l1", "test/psnr", "test/ssim"}
    assert float((system(pictures) - pictures).abs().mean()) < 0.7 * start
    folder = tmp_path / "checkpoint"
    net: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    latents = torch.cat([net.encode(2 * b["image"] - 1).latent_dist.mode() for b in source.batches("val")])
    assert float((latents * net.config.scaling_factor).std(correction=0)) == pytest.approx(1, rel=1e-3)
    again: Any = load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), system.net.parameters(), strict=True))
    assert again.net.config.scaling_factor == system.net.config.scaling_factor
    assert (tmp_path / "figures/reconstructions.png").is_file()
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(ValueError, match="must be in"):
        autoencoder(products=1.5)


def test_a_decoder_learns_on_with_the_latents_as_they_are(tmp_path):
    autoencoder().net.save_pretrained(tmp_path / "old")
    system = autoencoder(pretrained=str(tmp_path / "old"), decoder_only=True, lr=1e-2)
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
    with pytest.raises(ValueError, match=r"no AutoencoderKL could be loaded"):
        load(tmp_path)


def test_non_finite_decoded_images_are_an_error_with_their_keys():
    system, batch = autoencoder(), {"key": ["a", "b"], "image": torch.rand(2, 3, 32, 32)}
    batch["image"][1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"^decoded images: NaN or infinite for 1 of 2 images \(b\)"):
        system.evaluation_step(batch, "val")
