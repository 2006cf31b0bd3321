"""What is trained, what is not, and the way back to the generator as it was."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from safetensors.torch import load_file

from src.diffusion.lora import merge_lora
from src.models.generator.trainable import TRAINABLE, Trainable
from tests.diffusion import tiny


def weights(trainable: Trainable) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainable.generator.named_parameters()}


@pytest.mark.parametrize("name", TRAINABLE)
def test_only_the_part_is_trained(name):
    trainable = Trainable(tiny.generator(), name, rank=2)
    trained = trainable.weights()
    homes = {"all": {"text_encoder", "unet", "controlnet"}}.get(name, {name.removesuffix("_lora")})
    assert {key.partition(".")[0] for key in trained} == homes
    assert all(("lora" in key) == name.endswith("_lora") for key in trained)
    assert not any(weight.requires_grad for weight in trainable.generator.vae.parameters())
    if name.endswith("_lora"):
        assert sum(w.numel() for w in trained.values()) < 0.3 * sum(w.numel() for w in trainable.generator.parameters())


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_reference_is_the_generator_before_training(name):
    trainable, batch = Trainable(tiny.generator(), name, rank=2), tiny.ads(1)
    trainable.keep_reference()
    with torch.no_grad():
        conditions = trainable.generator.encode(batch)
        before = torch.cat(trainable.generator.noise(conditions.noise, 2, conditions))
        for weight in trainable.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        now = weights(trainable)
        moved = torch.cat(trainable.generator.noise(conditions.noise, 2, conditions))
        with trainable.reference():
            same = torch.cat(trainable.generator.noise(conditions.noise, 2, conditions))
        again = torch.cat(trainable.generator.noise(conditions.noise, 2, conditions))
    assert torch.equal(same, before)
    assert float((moved - before).abs().max()) > 1e-3
    assert torch.equal(again, moved)
    assert weights(trainable).keys() == now.keys()
    assert set(trainable.weights()) == {
        name for name, weight in trainable.generator.named_parameters() if weight.requires_grad
    }
    assert trainable.weights()


@pytest.mark.parametrize("name", ["unet_lora", "controlnet_lora"])
def test_merged_adapters_generate_equal_images(name, tmp_path):
    trainable = Trainable(tiny.generator(), name, rank=2)
    plain = {key for key, _ in tiny.generator().named_parameters()}
    with torch.no_grad():
        for weight in trainable.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        batch = tiny.ads(1)
        painted = trainable.generator.sample(trainable.generator.encode(batch))
        merged = trainable.merged()
        torch.testing.assert_close(merged.sample(merged.encode(batch)), painted, atol=1e-5, rtol=0)
    assert {key for key, _ in merged.named_parameters()} == plain
    assert not any(weight.requires_grad for weight in merged.parameters())
    assert trainable.weights()  # the trainable itself goes on


@pytest.mark.parametrize("name", ["controlnet", "unet_lora"])
def test_only_what_merging_changes_is_copied_and_the_part_stays_as_it_is(name):
    trainable = Trainable(tiny.generator(), name, rank=2)
    before, generator = weights(trainable), trainable.generator
    wide, half = trainable.merged(), trainable.merged(torch.float16)
    assert wide.vae is generator.vae
    assert (wide.unet is generator.unet) == (name == "controlnet")
    assert {weight.dtype for weight in half.parameters()} == {torch.float16}
    assert half.vae is not generator.vae
    after = weights(trainable)
    assert all(after[key].dtype == torch.float32 and torch.equal(after[key], before[key]) for key in before)
    assert (
        {key for key, weight in generator.named_parameters() if weight.requires_grad}
        == set(trainable.weights())
        != set()
    )


def test_a_controlnet_that_is_left_out_is_no_part():
    with pytest.raises(ValueError, match=r"trainable=controlnet_lora needs .*generator\.control_scale=0 disables it"):
        Trainable(tiny.generator(control_scale=0.0), "controlnet_lora")
    Trainable(tiny.generator(control_scale=0.0), "all")


def test_an_unknown_part_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"trainable=vae: choose one of unet, controlnet, .*, all\."):
        Trainable(tiny.generator(), "vae")


def test_diffusers_opens_the_adapters_of_the_unet(tmp_path):
    tiny.generator().save(tmp_path / "plain")
    trainable = Trainable(tiny.generator(), "unet_lora", rank=2)
    with torch.no_grad():
        for weight in trainable.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainable.save_adapters(tmp_path / "adapters", torch.float32)
    pipeline: Any = StableDiffusionControlNetInpaintPipeline.from_pretrained(tmp_path / "plain")
    pipeline.load_lora_weights(tmp_path / "adapters")
    x, t, words = torch.randn(1, 4, 16, 16), torch.tensor(300), torch.randn(1, 24, 16)
    with torch.no_grad():
        wanted = trainable.merged().unet(x, t, words).sample
        torch.testing.assert_close(pipeline.unet(x, t, words).sample, wanted, atol=1e-5, rtol=1e-5)
        assert (tiny.generator().unet(x, t, words).sample - wanted).abs().max() > 1e-3
    with pytest.raises(ValueError, match="trainable=unet has no adapters"):
        Trainable(tiny.generator(), "unet").save_adapters(tmp_path, torch.float32)


@pytest.mark.parametrize("name", ["unet_lora", "controlnet_lora"])
def test_adapters_in_the_layout_of_kohya_give_the_merged_generator(name, tmp_path):
    trainable = Trainable(tiny.generator(), name, rank=2)
    with torch.no_grad():
        for weight in trainable.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainable.save_adapters(tmp_path, torch.float32)
    state = load_file(tmp_path / "kohya.safetensors")
    layer = f"lora_{name.removesuffix('_lora')}_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert state[f"{layer}.lora_down.weight"].shape == (2, trainable.generator.unet.config["block_out_channels"][0])
    assert float(state[f"{layer}.alpha"]) == 2
    plain = tiny.generator()
    assert merge_lora(plain, tmp_path / "kohya.safetensors") == len(state)
    conditions, merged = plain.encode(tiny.ads(1)), trainable.merged()
    with torch.no_grad():
        mine, theirs, before = (
            torch.cat(net.noise(conditions.noise, 2, conditions)) for net in (plain, merged, tiny.generator())
        )
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert float((mine - before).abs().max()) > 1e-3


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("name", ["controlnet", "unet_lora"])
def test_bf16_weights_paint_nearly_the_same_and_come_back_to_the_bit(name, precise):
    trainable, batch = Trainable(tiny.generator(), name, rank=2), tiny.ads(1)
    trainable.keep_reference()
    before, trained = weights(trainable), trainable.weights()

    def painted() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False), trainable.low_precision():
            return trainable.generator.sample(trainable.generator.encode(batch))

    whole = painted()
    trainable.cast_frozen_to_bf16(precise)
    held = {key: weight.dtype for key, weight in trainable.generator.named_parameters()}
    kept = {key for key in held if key in trained or (precise and key.startswith(("unet", "controlnet")))}
    assert {held[key] for key in kept} == {torch.float32}
    assert {dtype for key, dtype in held.items() if key not in kept} == {torch.bfloat16}
    torch.testing.assert_close(painted(), whole, atol=0.05, rtol=0)
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.5)
    assert (painted() - whole).abs().max() > 0.05, "a copy is as new as the weights"
    with trainable.reference():
        torch.testing.assert_close(painted(), whole, atol=0.05, rtol=0)
    assert (painted() - whole).abs().max() > 0.05
    with trainable.low_precision():
        assert trainable.generator.controlnet.dtype == torch.bfloat16
        assert not precise or trainable.generator.unet.dtype == torch.bfloat16
    assert all(a is b for a, b in zip(trainable.weights().values(), trained.values(), strict=True))
    with torch.no_grad():
        for weight in trained.values():
            weight.sub_(0.5)
    trainable.restore_float32()
    now = weights(trainable)
    assert all(torch.equal(now[key], before[key]) for key in before if key not in trained)
    assert {weight.dtype for weight in now.values()} == {torch.float32}


def test_a_copy_is_as_the_weights_are_now_however_they_changed():
    trainable = Trainable(tiny.generator(), "controlnet")
    trainable.cast_frozen_to_bf16()
    weight = next(iter(trainable.weights().values()))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0, fused=True)  # changes weights unseen by autograd
    was = float(weight.detach().flatten()[0])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with trainable.low_precision():
        now = float(next(trainable.generator.controlnet.parameters()).flatten()[0])
    assert now == pytest.approx(was - 0.5, abs=4e-3)
