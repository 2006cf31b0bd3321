"""The paper's equations against diffusers' own pipeline and by hand."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from omegaconf import OmegaConf
from torchvision.transforms.v2.functional import gaussian_blur

from src.build import build
from src.config import compose
from src.diffusion.canny import outline
from src.diffusion.fresh import fresh_controlnet
from src.diffusion.loading import autoencoder_of, load_generator
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.runtime.finite import require_finite
from tests.diffusion import tiny


def pipeline(generator) -> Any:
    make: Any = StableDiffusionControlNetInpaintPipeline
    pipe = make(
        vae=generator.vae, text_encoder=generator.text_encoder, tokenizer=generator.tokenizer, unet=generator.unet,
        controlnet=generator.controlnet, scheduler=generator.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("prediction", "from_noise"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
@pytest.mark.parametrize("num_steps", [5, 40])  # of trailing steps diffusers misses the next if 1000 is no multiple
def test_samples_equal_the_diffusers_pipeline(prediction, from_noise, num_steps):
    generator = tiny.generator(
        prediction=prediction, from_noise=from_noise, num_steps=num_steps, guidance_scale=3.0, control_scale=0.8
    )
    with torch.no_grad():  # its pipeline draws latents from the VAE's distribution; with no deviation it has no choice
        generator.vae.quant_conv.weight[4:] = 0
        generator.vae.quant_conv.bias[4:] = -30
    batch = tiny.ads(2)
    conditions = generator.encode(batch)
    product = batch["product"]
    shown = product[:, :3] * product[:, 3:] + 1 - product[:, 3:]
    uncond, text = conditions.text.chunk(2)
    theirs = pipeline(generator)(
        prompt_embeds=text, negative_prompt_embeds=uncond, image=shown, mask_image=1 - product[:, 3:],
        control_image=conditions.edges, latents=conditions.noise, num_inference_steps=num_steps, guidance_scale=3.0,
        controlnet_conditioning_scale=0.8, strength=1.0, height=tiny.SIZE, width=tiny.SIZE, output_type="pt",
    ).images  # fmt: skip
    alpha = product[:, 3:]
    ours = generator.sample(conditions)
    torch.testing.assert_close(ours, theirs * (1 - alpha) + product[:, :3] * alpha, atol=1e-4, rtol=0)
    assert float((ours - shown).abs().mean()) > 0.05  # something was painted


@pytest.mark.parametrize("kind", ["tiny", "residual"])
def test_so_it_is_with_other_autoencoders_whose_folders_open_in_diffusers(kind, tmp_path):
    generator, batch, make = tiny.generator(guidance_scale=3.0), tiny.ads(2), AutoencoderTiny
    torch.manual_seed(0)
    net = (
        tiny.residual_autoencoder()
        if kind == "residual"
        else make(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), latent_channels=4,
            num_encoder_blocks=(0, 1, 1), num_decoder_blocks=(1, 1, 0), scaling_factor=2.0,
        )
    )  # fmt: skip
    generator.vae = net.eval().requires_grad_(False)
    generator.save(tmp_path)
    opened: Any = StableDiffusionControlNetInpaintPipeline.from_pretrained(
        tmp_path, trust_remote_code=kind == "residual"
    )
    opened.set_progress_bar_config(disable=True)
    assert type(opened.vae).__name__ == type(generator.vae).__name__
    assert type(opened.vae) is not ResidualAutoencoder  # its code is that of the folder
    conditions, alpha = generator.encode(batch), batch["product"][:, 3:]
    shown = batch["product"][:, :3] * alpha + 1 - alpha
    latents = generator.vae.encode(2 * shown - 1).latents
    torch.testing.assert_close(conditions.latents, latents * generator.vae.config["scaling_factor"])
    uncond, text = conditions.text.chunk(2)
    theirs = opened(
        prompt_embeds=text, negative_prompt_embeds=uncond, image=shown, mask_image=1 - alpha,
        control_image=conditions.edges, latents=conditions.noise, num_inference_steps=6, guidance_scale=3.0,
        controlnet_conditioning_scale=1.0, strength=1.0, height=tiny.SIZE, width=tiny.SIZE, output_type="pt",
    ).images  # fmt: skip
    again = load_generator(tmp_path, num_steps=6, guidance_scale=3.0).eval()
    assert type(again.vae) is type(net)
    for ours in (generator.sample(conditions), again.sample(again.encode(batch))):
        torch.testing.assert_close(ours, theirs * (1 - alpha) + batch["product"][:, :3] * alpha, atol=1e-4, rtol=0)


def test_an_autoencoder_of_an_unknown_class_is_refused_by_name(tmp_path):
    tiny.generator().vae.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"_class_name": "AutoencoderDC"}))
    with pytest.raises(ValueError, match="AutoencoderDC is not supported: choose from AutoencoderKL, "):
        autoencoder_of(tmp_path)
    file.write_text(json.dumps({name: value for name, value in config.items() if name != "_class_name"}))
    assert type(autoencoder_of(tmp_path)).__name__ == "AutoencoderKL"
    file.unlink()
    with pytest.raises(ValueError, match="no AutoencoderKL could be loaded"):
        autoencoder_of(tmp_path)


def test_so_it_is_of_plain_prompts_and_products_with_soft_edges():
    generator = tiny.generator(guidance_scale=3.0, negative_prompt="bad")
    with torch.no_grad():
        generator.vae.quant_conv.weight[4:] = 0
        generator.vae.quant_conv.bias[4:] = -30
    batch = tiny.ads(3)
    product = batch["product"]
    product[:, 3:] = gaussian_blur(product[:, 3:], [9, 9], [3.0, 3.0])
    conditions, alpha = generator.encode(batch), product[:, 3:]
    assert float(((alpha > 0.01) & (alpha < 0.99)).float().mean()) > 0.1
    theirs = pipeline(generator)(
        prompt=batch["prompt"], negative_prompt=["bad"] * 3, image=product[:, :3] * alpha + 1 - alpha,
        mask_image=1 - alpha, control_image=conditions.edges, latents=conditions.noise, num_inference_steps=6,
        controlnet_conditioning_scale=1.0,
        guidance_scale=3.0, strength=1.0, height=tiny.SIZE, width=tiny.SIZE, output_type="pt",
    ).images  # fmt: skip
    expected = theirs * (1 - alpha) + product[:, :3] * alpha
    torch.testing.assert_close(generator.sample(conditions), expected, atol=1e-4, rtol=0)


def test_the_estimate_inverts_the_noising_and_the_product_keeps_its_place():
    generator = tiny.generator()
    conditions = generator.encode(tiny.ads(2))
    clean, eps = torch.randn(2, 2, 4, 16, 16)
    for i in (0, 3, 5):
        a, b = generator.alpha_bars[i : i + 2]
        x = a**0.5 * clean + (1 - a) ** 0.5 * eps
        torch.testing.assert_close(generator.estimate(x, eps, i), clean, atol=2e-4, rtol=1e-4)
        moved, mask = generator.step(x, eps, i, conditions), conditions.background.expand_as(x) > 0
        torch.testing.assert_close(moved[mask], (b**0.5 * clean + (1 - b) ** 0.5 * eps)[mask], atol=2e-4, rtol=1e-4)
        known = conditions.latents if i == 5 else b**0.5 * conditions.latents + (1 - b) ** 0.5 * conditions.noise
        assert torch.equal(moved[~mask], known[~mask])


def test_a_rollout_may_be_cut_in_two_and_leaves_the_controlnet_as_it_was():
    generator = tiny.generator()
    conditions = generator.encode(tiny.ads(1))
    embedding = generator.controlnet.controlnet_cond_embedding
    with torch.no_grad():
        half = generator.rollout(conditions, 3)
        torch.testing.assert_close(generator.rollout(conditions, 5, 3, half), generator.rollout(conditions, 5))
        plain = generator.noise(half, 3, conditions)
        by_hand = generator.step(half, generator.guide(*plain), 3, conditions)
        torch.testing.assert_close(generator.rollout(conditions, 4, 3, half), by_hand)
    assert generator.controlnet.controlnet_cond_embedding is embedding


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_branch_alone_is_that_of_both(prediction):
    generator = tiny.generator(prediction=prediction)
    conditions = generator.encode(tiny.ads(3))
    with torch.no_grad():
        both = generator.noise(conditions.noise, 2, conditions)
        for branch, whole in zip(("text", "uncond"), both, strict=True):
            alone = generator.noise_of(branch, conditions.noise, 2, conditions)
            torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(*both, atol=1e-3)


def test_a_picture_depends_on_seed_and_key_not_on_its_neighbours():
    generator = tiny.generator()
    both, batch = generator.sample(generator.encode(tiny.ads(2))), tiny.ads(2)
    alone = {name: value[1:] for name, value in batch.items()}
    torch.testing.assert_close(generator.sample(generator.encode(alone)), both[1:], atol=1e-5, rtol=0)
    other = generator.sample(generator.encode(alone, seed=1))
    assert float((other - both[1:]).abs().mean()) > 0.01
    alpha = batch["product"][:, 3:]
    torch.testing.assert_close(both * alpha, batch["product"][:, :3] * alpha, atol=1e-6, rtol=0)


def test_its_folder_opens_in_diffusers_and_comes_back_the_same(tmp_path):
    generator = tiny.generator()
    generator.save(tmp_path)
    opened = StableDiffusionControlNetInpaintPipeline.from_pretrained(tmp_path)
    assert type(opened.controlnet).__name__ == "ControlNetModel"
    assert (tmp_path / "unet/diffusion_pytorch_model.safetensors").is_file()
    again = load_generator(tmp_path, num_steps=6).eval()
    batch = tiny.ads(1)
    assert torch.equal(again.sample(again.encode(batch)), generator.sample(generator.encode(batch)))
    again.save(tmp_path / "tuned")
    for file in (tmp_path / "tuned").rglob("*.json"):  # what is given to others does not tell where it was made
        assert str(tmp_path) not in file.read_text(), file


def test_outlines_are_canny_edges_of_the_product_over_black():
    product = torch.zeros(1, 4, 32, 32)
    product[:, :, 8:24, 8:24] = 1  # a white square
    product[:, :3, :4] = 1  # colour under transparent pixels does not show
    edges = outline(product)
    assert edges.shape == (1, 3, 32, 32)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert float(edges[0, 0, :5].max()) == 0
    rows = edges[0, 0].sum(dim=1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) in ((7, 23), (8, 23), (7, 24), (8, 24))


def test_a_painted_region_reaches_into_the_product_by_the_dilation():
    batch = tiny.ads(1)
    plain, dilated = (tiny.generator(dilation=d).encode(batch).background for d in (0, 12))
    assert float(plain.sum()) < float(dilated.sum()) < plain.numel()


def test_what_it_cannot_paint_with_is_refused_by_name():
    generator = tiny.generator()
    with pytest.raises(ValueError, match=r"product must be \(batch, 4, height, width\), got \(2, 3"):
        generator.encode(tiny.ads(2) | {"product": torch.zeros(2, 3, 64, 64)})
    with pytest.raises(ValueError, match=r"products of 66 x 64 px: the size must be a multiple of 4 px; .* on 64 px"):
        generator.encode(tiny.ads(2) | {"product": torch.zeros(2, 4, 64, 66)})
    with pytest.raises(ValueError, match="prediction_type is sample"):
        tiny.generator(prediction="sample")


def test_a_scheduler_of_another_kind_is_read_as_ddim_with_leading_steps_and_no_clipping(tmp_path):
    painter = tiny.generator()
    painter.save(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    told = json.loads(file.read_text())
    odd = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "thresholding": True}
    del told["clip_sample"]  # DDIM's own default is to clip
    file.write_text(json.dumps(told | odd))
    again = load_generator(tmp_path, **painter.settings)
    assert again.timesteps == painter.timesteps
    batch = tiny.ads(2)
    torch.testing.assert_close(again.sample(again.encode(batch)), painter.sample(painter.encode(batch)))
    again.save(tmp_path / "tuned")  # what diffusers opens then paints the same
    saved = json.loads((tmp_path / "tuned/scheduler/scheduler_config.json").read_text())
    assert (saved["timestep_spacing"], saved["clip_sample"], saved["thresholding"]) == ("leading", False, False)


def test_zero_terminal_snr_uses_trailing_timesteps(tmp_path):
    painter = tiny.generator(prediction="v_prediction", from_noise=True)
    assert (painter.timesteps[0], painter.scheduler.alphas_cumprod[-1]) == (999, 0)
    painter.save(tmp_path)
    assert load_generator(tmp_path, **painter.settings).timesteps == painter.timesteps
    conditions = painter.encode(tiny.ads(2))
    text, _ = painter.noise(conditions.noise, 0, conditions)
    predicted = painter.predict(
        conditions.noise, torch.tensor(999), conditions.text.chunk(2)[1], conditions.edges
    )  # v, of pure noise, is the negative picture
    torch.testing.assert_close(painter.estimate(conditions.noise, text, 0), -predicted)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr needs prediction_type v_prediction"):
        tiny.generator(from_noise=True)


def test_a_tuned_folder_keeps_its_controlnet_and_settings(tmp_path):
    tuned, base = tiny.generator(1, num_steps=3, dilation=5), tiny.generator(0)
    tuned.save(tmp_path / "tuned")
    base.controlnet.save_pretrained(tmp_path / "published")
    node = {"_target_": "src.models.rfft.system.RFFT", "generator": {"folder": "./", **tuned.settings}}
    OmegaConf.save(OmegaConf.create({"model": node}), tmp_path / "tuned/config.yaml")
    again = load_generator(tmp_path / "tuned", tmp_path / "published", guidance_scale=2.0)
    assert torch.equal(again.controlnet.conv_in.weight, tuned.controlnet.conv_in.weight)
    assert (again.num_steps, again.dilation, again.guidance_scale) == (3, 5, 2.0)
    words = ["products=x", "prompts=y", f"generator.folder={tmp_path / 'tuned'}"]
    for more, steps in ([], 3), (["generator.num_steps=4"], 4):
        assert build(compose("generate", words + more).generator).num_steps == steps
    shutil.rmtree(tmp_path / "tuned/controlnet")
    other = load_generator(tmp_path / "tuned", tmp_path / "published")
    assert torch.equal(other.controlnet.conv_in.weight, base.controlnet.conv_in.weight)


def test_a_folder_with_the_fp16_variant_alone_is_read(tmp_path):
    painter = tiny.generator()
    painter.save(tmp_path)
    for name in ("unet", "text_encoder"):
        shutil.rmtree(tmp_path / name)
        getattr(painter, name).half().save_pretrained(tmp_path / name, variant="fp16")
    again = load_generator(tmp_path, num_steps=6)
    assert torch.equal(again.unet.conv_in.weight, painter.unet.conv_in.weight.float())


def test_a_prompt_that_is_cut_and_a_foreign_size_are_told():
    painter, batch = tiny.generator(), tiny.ads(1, size=32)
    with pytest.warns(UserWarning, match="products of 32 px: this generator was trained on 64 px"):
        painter.encode(batch)
    with pytest.warns(UserWarning, match=r"^a prompt is truncated to 24 tokens: a a a a a a \.\.\.$"):
        painter.words(["a " * 30])
    with pytest.warns(UserWarning, match=r"^the prompt of ad1 is truncated to 24 tokens: a red a red a red \.\.\.$"):
        painter.encode(tiny.ads(2) | {"prompt": ["b", "a red " * 100]})


def test_a_folder_that_is_none_is_told_at_once(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file"):
        load_generator(file)
    with pytest.raises(ValueError, match=r"model\.safetensors is a file; a folder in the diffusers layout is needed"):
        autoencoder_of(file)
    for folder in (tmp_path / "none", "runs/none/checkpoint", "./none"):
        with pytest.raises(ValueError, match=f"there is no folder {folder}"):
            load_generator(folder)


def test_outlines_propagate_through_a_fresh_controlnet(tmp_path):
    tiny.generator().save(tmp_path)
    embedding: Any = fresh_controlnet(tmp_path, edge_channels=(8, 16, 32, 48)).controlnet_cond_embedding
    edges = outline(tiny.ads(4)["product"])
    embedding.conv_out = torch.nn.Identity()
    with torch.no_grad():
        seen, unseen = embedding(edges), embedding(0 * edges)
    assert 0.01 < float((seen - unseen).square().mean().sqrt()) < 1


def test_a_fresh_controlnet_is_the_first_half_of_the_unet_and_adds_nothing_yet(tmp_path):
    tiny.generator().save(tmp_path)
    made = [fresh_controlnet(tmp_path, edge_channels=(4, 8, 8), seed=seed) for seed in (0, 0, 1)]
    painter = load_generator(tmp_path, made[0], num_steps=6)
    assert painter.controlnet is made[0]
    half = painter.controlnet.down_blocks[0].state_dict()
    assert all(torch.equal(half[name], weight) for name, weight in painter.unet.down_blocks[0].state_dict().items())
    alone = load_generator(tmp_path, made[0], num_steps=6, control_scale=0.0)
    batch = tiny.ads(2)
    torch.testing.assert_close(painter.sample(painter.encode(batch)), alone.sample(alone.encode(batch)))
    first, same, other = (net.controlnet_cond_embedding.conv_in.weight for net in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_soft_edges_are_the_mix_of_product_and_background_by_alpha():
    painter, batch = tiny.generator(), tiny.ads(1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    batch["product"][:, 3] = ((20 - (x - 32).hypot(y - 32)) / 3 + 0.5).clamp(0, 1)
    conditions = painter.encode(batch)
    colors, alpha = batch["product"].split([3, 1], dim=1)
    without = replace(conditions, product=torch.cat([colors, 0 * alpha], dim=1))
    with torch.no_grad():
        made, background = (painter.image(conditions.noise, c) for c in (conditions, without))
    soft = ((alpha > 0.01) & (alpha < 0.99)).expand_as(made)
    assert soft.sum() > 300
    torch.testing.assert_close(made, alpha * colors + (1 - alpha) * background)
    assert (made <= torch.maximum(colors, background) + 1e-6)[soft].all()  # no rim is brighter than both


def test_one_pixel_to_be_painted_paints_its_whole_latent_from_noise_and_changes_no_other_pixel():
    painter, batch = tiny.generator(), tiny.ads(1)
    image, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[0, 0, 9, 15] = True
    conditions = painter.masked(batch, image, mask)
    assert conditions.background.nonzero().tolist() == [[0, 0, 2, 3]]  # latents of 4 px
    a = painter.alpha_bars[1]
    with torch.no_grad():
        kept = painter.rollout(conditions, 1) - (a**0.5 * conditions.latents + (1 - a) ** 0.5 * conditions.noise)
        other = painter.rollout(replace(conditions, latents=conditions.latents + 5), 1)
        changed = painter.sample(conditions) != image
    assert kept.abs().amax(dim=1).nonzero().tolist() == [[0, 2, 3]]
    assert torch.equal(other[0, :, 2, 3], painter.rollout(conditions, 1)[0, :, 2, 3])  # not from the image
    assert changed.any(dim=1).nonzero().tolist() == [[0, 9, 15]]


def test_the_shipped_autoencoder_shifts_gray_by_less_than_9_of_255():
    vae = autoencoder_of("checkpoints/showroom-generator", "vae").eval()
    for gray in (0.2, 0.5, 0.8):
        with torch.no_grad():
            coded = vae.encode(torch.full((1, 3, 128, 128), 2 * gray - 1)).latent_dist.mode()
            means = (vae.decode(coded).sample / 2 + 0.5).mean(dim=(2, 3))
        assert float((means - gray).abs().max()) < 0.035  # largest: .033, of green at .8


def test_the_scale_of_latents_is_undone():
    painter, image = tiny.generator(), torch.rand(1, 3, 64, 64)
    conditions, made = painter.encode(tiny.ads(1)), []
    conditions = replace(conditions, background=torch.ones_like(conditions.background))
    for factor in (0.18215, 2.0):
        painter.vae.register_to_config(scaling_factor=factor)
        with torch.no_grad():
            made.append(painter.image(painter.latents(image), conditions))
    torch.testing.assert_close(*made, atol=1e-5, rtol=0)


@pytest.mark.parametrize("latents", [1e4, 1.0])
def test_an_overflow_of_a_half_precision_vae_is_neither_white_nor_black(latents):
    painter = tiny.generator()
    with torch.no_grad():
        if latents == 1.0:
            painter.vae.decoder.conv_out.weight.mul_(1e5)  # only the last layer overflows, to infinity
        conditions = painter.encode(tiny.ads(1))
        painter.vae.half()
        made = painter.image(torch.full_like(conditions.noise, latents), conditions)
    with pytest.raises(ValueError, match=r"images: NaN or infinite for 1 of 1 images \(ad0\)"):
        require_finite(made, "images", ["ad0"])
