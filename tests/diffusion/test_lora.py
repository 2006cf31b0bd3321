"""LoRA files in each layout change the weights by (alpha / rank) B A, worked out by hand; others are refused."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d

from src.build import build
from src.config import compose
from src.diffusion.lora import merge_lora
from src.diffusion.original_names import original_name
from tests.diffusion import tiny

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
WORDS = "encoder.layers.0.self_attn.q_proj"
LAYOUTS = {  # the names of B and A
    "kohya": ("lora_unet_{flat}.lora_up.weight", "lora_unet_{flat}.lora_down.weight"),
    "kohya, original": ("lora_unet_{old}.lora_up.weight", "lora_unet_{old}.lora_down.weight"),
    "PEFT": ("base_model.model.{name}.lora_B.weight", "base_model.model.{name}.lora_A.weight"),
    "PEFT, named": ("base_model.model.{name}.lora_B.mine.weight", "base_model.model.{name}.lora_A.mine.weight"),
    "diffusers": ("unet.{name}.lora_B.weight", "unet.{name}.lora_A.weight"),
    "diffusers, older": ("unet.{name}.lora.up.weight", "unet.{name}.lora.down.weight"),
    "diffusers, oldest": ("{block}.processor.{last}_lora.up.weight", "{block}.processor.{last}_lora.down.weight"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny.generator()


def names(layout: str, layer: str, net: Any) -> list[str]:
    block, _, last = layer.removesuffix(".0").rpartition(".")
    old = original_name(layer, net.config).replace(".", "_")
    words = {"name": layer, "flat": layer.replace(".", "_"), "old": old, "block": block, "last": last}
    return [name.format(**words) for name in LAYOUTS[layout]]


def change(net: Any, layer: str, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A for a layer."""
    made, weight = torch.Generator().manual_seed(seed), net.get_submodule(layer).weight
    return torch.randn(weight.shape[0], rank, generator=made), torch.randn(rank, weight.shape[1], generator=made)


def merged(plain: Any, state: dict[str, torch.Tensor], folder: Path, used: int, scale: float = 1.0, **save: Any) -> Any:
    save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / "lora.safetensors", **save)
    made = deepcopy(plain)
    assert merge_lora(made, folder / "lora.safetensors", scale) == used
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_may_differ_and_without_alpha_the_scale_is_one_in_any_order(layout, plain, tmp_path):
    state, wanted = {}, {}
    for layer, rank in ((QUERY, 4), (OUT, 16)):
        up, down = change(plain.unet, layer, rank)
        state |= dict(zip(names(layout, layer, plain.unet), (up, down), strict=True))
        wanted[layer] = plain.unet.get_submodule(layer).weight + 0.5 * up @ down
    for ordered in (state, dict(reversed(state.items()))):
        made = merged(plain, ordered, tmp_path, used=4, scale=0.5)
        for layer, weight in wanted.items():
            torch.testing.assert_close(made.unet.get_submodule(layer).weight, weight)
        before = plain.state_dict()
        changed = [key for key, weight in made.state_dict().items() if not torch.equal(weight, before[key])]
        assert changed == [f"unet.{layer}.weight" for layer in (QUERY, OUT)]


def test_alpha_convolutions_and_the_text_encoder(plain, tmp_path):
    up, down = change(plain.unet, QUERY, 4)
    kernel, wide = torch.randn(2, 8, 3, 3), torch.randn(8, 2, 1, 1)
    core, narrow = torch.randn(2, 2, 3, 3), torch.randn(2, 8, 1, 1)
    text = next(name for name, _ in plain.text_encoder.named_modules() if name.endswith(WORDS))
    te_up, te_down = change(plain.text_encoder, text, 2)
    unet, clip = "lora_unet_", f"lora_te_text_model_{WORDS.replace('.', '_')}"
    flat, conv = f"{unet}{QUERY.replace('.', '_')}", f"{unet}{CONV.replace('.', '_')}"
    other = conv.replace("conv1", "conv2")
    state = {
        f"{flat}.alpha": torch.tensor(1.0), f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down,
        f"{conv}.lora_down.weight": kernel, f"{conv}.lora_up.weight": wide,
        f"{other}.lora_down.weight": narrow, f"{other}.lora_up.weight": wide, f"{other}.lora_mid.weight": core,
        f"{clip}.lora_up.weight": te_up, f"{clip}.lora_down.weight": te_down, f"{clip}.alpha": torch.tensor(6.0),
    }  # fmt: skip
    made = merged(plain, state, tmp_path, used=11)

    def changed(part: str, layer: str) -> torch.Tensor:
        before, after = (getattr(generator, part).get_submodule(layer).weight for generator in (plain, made))
        return after - before

    torch.testing.assert_close(changed("unet", QUERY), up @ down / 4, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(changed("text_encoder", text), 3 * te_up @ te_down, atol=1e-5, rtol=1e-4)
    x = torch.randn(1, 8, 5, 5)
    for layer, chain in ((CONV, (kernel, wide)), (CONV.replace("conv1", "conv2"), (narrow, core, wide))):
        y = x
        for weight in chain:
            y = conv2d(y, weight, padding=weight.shape[-1] // 2)
        torch.testing.assert_close(conv2d(x, changed("unet", layer), padding=1), y, atol=1e-4, rtol=1e-4)


def test_alpha_from_the_configuration_of_peft(plain, tmp_path):
    up, down = change(plain.unet, QUERY, 4)
    before = plain.unet.get_submodule(QUERY).weight
    header = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {}}
    state = dict(zip(names("diffusers", QUERY, plain.unet), (up, down), strict=True))
    made = merged(plain, state, tmp_path, 2, metadata={"lora_adapter_metadata": json.dumps(header)})
    torch.testing.assert_close(made.unet.get_submodule(QUERY).weight, before + up @ down / 2)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12}}))
    save_file(
        dict(zip(names("PEFT", QUERY, plain.unet), (up, down), strict=True)), tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "lora.safetensors").unlink()
    made = deepcopy(plain)
    merge_lora(made, tmp_path)  # a folder
    torch.testing.assert_close(made.unet.get_submodule(QUERY).weight, before + 3 * up @ down)


def test_what_does_not_fit_is_named_or_refused(plain, tmp_path):
    up, down = change(plain.unet, QUERY, 4)
    fits = dict(zip(names("kohya", QUERY, plain.unet), (up, down), strict=True))
    loha = {"lora_unet_x.hada_w1_a": torch.ones(1), "lora_unet_mid_block_x.lora_up.weight": torch.ones(1)}
    with pytest.warns(UserWarning, match=r"lora\.safetensors: 2 of 4 tensors are not used: lora_unet_mid_block_x"):
        merged(plain, fits | loha, tmp_path, used=2)
    first, second = fits
    for state, told in (
        (loha, r"none of its 2 tensors is a LoRA of this generator; the first: lora_unet_mid.*, lora_unet_x\.h"),
        ({first: up}, r"the layer lora_unet_down_.*to_q has no down weights"),
        ({first: up, second: down[:, :3]}, r"to_q \(down \(4, 3\), up \(8, 4\)\) does not fit unet\.down.* \(8, 8\)"),
        (fits | {first.replace("lora_up.weight", "dora_scale"): up}, "DoRA is not supported"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            merged(plain, state, tmp_path, 0)


def test_it_is_given_on_the_command_line(plain, tmp_path):
    plain.save(tmp_path / "generator")
    up, down = change(plain.unet, QUERY, 4)
    save_file(dict(zip(names("kohya", QUERY, plain.unet), (up, down), strict=True)), tmp_path / "lora.safetensors")
    chosen = [f"generator.folder={tmp_path / 'generator'}", f"generator.lora={tmp_path / 'lora.safetensors'}"]
    config = compose("generate", ["products=x", "prompts=y", "generator.lora_scale=2", *chosen])
    made = build(config.generator)
    before = plain.unet.get_submodule(QUERY).weight
    torch.testing.assert_close(made.unet.get_submodule(QUERY).weight, before + 2 * up @ down)
