"""Generators and ControlNets in one file equal those in folders, whatever their names; others are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from src.build import build
from src.config import compose
from src.diffusion.clip_tokenizer import clip_tokenizer
from src.diffusion.generator import Generator
from src.diffusion.loading import load_generator
from src.diffusion.original_names import original_name
from src.diffusion.single_file import SingleFile
from src.diffusion.stable_diffusion import unet_config
from tests.diffusion import original, tiny


def named(generator: Generator, *parts: str) -> dict[str, torch.Tensor]:
    """In diffusers' names."""
    return {f"{p}.{name}": w.clone() for p in parts for name, w in getattr(generator, p).state_dict().items()}


def save(state: dict[str, torch.Tensor], file: Path, half: bool = False) -> Path:
    save_file({key: (value.half() if half else value).contiguous() for key, value in state.items()}, file)
    return file


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made() -> Generator:
    return tiny.generator(version=1, num_steps=2)


@pytest.mark.parametrize(("version", "layout"), [(1, "original"), (2, "original"), (1, "diffusers")])
def test_a_generator_in_one_file_samples_as_its_folder(version, layout, made, words, tmp_path):
    made = made if version == 1 else tiny.generator(version=2, num_steps=2)
    options: dict[str, Any] = {"num_steps": 2, "trained_size": tiny.SIZE} | (
        {"prediction": "epsilon"} if version == 2 else {}
    )
    state = original.whole(made, version) if layout == "original" else named(made, "unet", "vae", "text_encoder")
    net = save(original.unet(made.controlnet, "control_model."), tmp_path / "controlnet.safetensors")
    again = load_generator(save(state, tmp_path / "model.safetensors"), net, tokenizer=words, **options).eval()
    batch = tiny.ads(1)
    assert again.size == tiny.SIZE
    assert torch.equal(again.sample(again.encode(batch)), made.sample(made.encode(batch)))


def test_a_controlnet_in_one_file_is_that_of_the_folder(made, tmp_path):
    net = made.controlnet
    for start, names in (("control_model.", "old"), ("", "old"), ("controlnet.", "own"), ("", "own")):
        state = original.unet(net, start) if names == "old" else {start + k: w for k, w in net.state_dict().items()}
        again = SingleFile(save(state, tmp_path / "net.safetensors")).controlnet()
        assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in net.state_dict().items())
        kept = ("attention_head_dim", "cross_attention_dim", "block_out_channels", "norm_num_groups")
        told = [(again.config[key], net.config[key]) for key in (*kept, "conditioning_embedding_out_channels")]
        assert all(list(np.ravel(a)) == list(np.ravel(b)) or set(np.ravel(b)) == {a} for a, b in told)


def test_a_file_with_a_controlnet_needs_no_other_and_half_precision_becomes_single(made, words, tmp_path):
    state = original.whole(made, 1) | original.unet(made.controlnet, "control_model.")
    file = save(state, tmp_path / "model.safetensors", half=True)
    again = load_generator(file, tokenizer=words, trained_size=64)
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert torch.equal(again.controlnet.conv_in.weight, made.controlnet.conv_in.weight.half().float())


def test_what_is_no_such_file_is_refused_by_its_first_names(made, words, tmp_path):
    unet = save(made.unet.state_dict(), tmp_path / "unet.safetensors")
    whole = save(original.whole(made, 1), tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"unet\.safetensors is no ControlNet: .* tensors: conv_in\.bias, conv_in"):
        load_generator(whole, unet, tokenizer=words)
    with pytest.raises(ValueError, match=r"whole\.safetensors is no ControlNet: .*cond_stage_model"):
        load_generator(whole, tokenizer=words)
    with pytest.raises(ValueError, match=r"unet\.safetensors has no unet, vae, text_encoder \(unet: model\.diff"):
        load_generator(unet)
    with pytest.raises(ValueError, match="its text encoder has 74 tokens, not the 49408 of CLIP; give its tokenizer's"):
        load_generator(whole, made.controlnet)
    state = original.whole(made, 1)
    without = {key: weight for key, weight in state.items() if key != "model.diffusion_model.out.2.bias"}
    with pytest.raises(ValueError, match=r"without\.safetensors does not fit UNet2DConditionModel: it lacks conv_out"):
        load_generator(save(without, tmp_path / "without.safetensors"), tokenizer=words)
    large = save(state | {"conditioner.embedders.0.x": torch.ones(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(ValueError, match=r"not of Stable Diffusion 1 or 2 \(conditioner.*SDXL is not supported"):
        load_generator(large)
    second = save(original.whole(tiny.generator(version=2), 2), tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match=r"is a Stable Diffusion 2\.x, .* give generator\.prediction=epsilon"):
        load_generator(second, tokenizer=words)
    with pytest.raises(ValueError, match="prediction and trained_size are for single files"):
        load_generator(tmp_path, prediction="epsilon")
    with pytest.raises(ValueError, match="prediction=x: choose from epsilon, v_prediction"):
        load_generator(whole, prediction="x", tokenizer=words)


def test_files_are_given_on_the_command_line(made, words, tmp_path):
    whole = save(original.whole(made, 1) | {"v_pred": torch.ones(0)}, tmp_path / "whole.safetensors")
    net = save(made.controlnet.state_dict(), tmp_path / "net.safetensors")
    chosen = [f"generator.folder={whole}", f"generator.controlnet={net}", f"generator.tokenizer={words}"]
    config = compose("generate", ["products=x", "prompts=y", "generator=sd15", *chosen])
    again = build(config.generator)
    assert (again.size, again.kind) == (512, "v_prediction")


SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "norm_num_groups": 32,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD21 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


@pytest.mark.parametrize("config", [SD15, SD21], ids=["1.5", "2.1"])
def test_the_configuration_of_the_real_sizes_follows_from_the_shapes(config):
    with torch.device("meta"):
        net: Any = UNet2DConditionModel(**config)
    assert unet_config(net.state_dict(), 64) == config
    if config is SD15:  # names of the original code that everyone knows
        names = {original_name(name, net.config) for name in net.state_dict()}
        assert len(names) == 686
        assert {
            "input_blocks.3.0.op.weight", "input_blocks.11.0.in_layers.2.weight", "middle_block.1.proj_in.weight",
            "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.bias", "output_blocks.11.1.norm.weight",
            "input_blocks.4.0.skip_connection.weight", "time_embed.2.bias", "out.2.weight",
        } <= names  # fmt: skip


def test_the_tokenizer_is_that_of_clip():
    reader, known = clip_tokenizer(second=False), SimpleTokenizer()
    for prompt in ("A red Chair, 4k photo's   (oak:1.2)", "", "naïve café 椅子 😀", "word " * 90):
        ids = reader(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        read = known(prompt)[0].tolist()
        end = read.index(49407) if 49407 in read else 76
        assert ids == read[:end] + [49407] * (77 - end)
    assert clip_tokenizer(second=True)("", padding="max_length").input_ids[:3] == [49406, 49407, 0]
