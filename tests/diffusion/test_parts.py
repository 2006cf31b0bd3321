"""Parts that do not fit are told when a generator is built."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from src.diffusion.loading import load_generator
from src.diffusion.parts import check_parts
from tests.diffusion import tiny

TEXT = {"hidden_size": 16, "vocab_size": 74, "max_position_embeddings": 24}
VAE = {"latent_channels": 4, "block_out_channels": [8, 8, 16]}
NET = {
    "cross_attention_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
}
CONTROL = NET | {"conditioning_embedding_out_channels": [4, 8, 8]}


class Tokenizer:
    model_max_length = 24

    def __len__(self) -> int:
        return 74


def check(text=None, vae=None, unet=None, controlnet=None, scheduler=None, tokenizer=None) -> None:
    configs = (VAE | (vae or {}), NET | (unet or {}), CONTROL | (controlnet or {}), scheduler or {})
    check_parts(
        tokenizer or Tokenizer(),
        SimpleNamespace(config=SimpleNamespace(**TEXT | (text or {}))),
        *(SimpleNamespace(config=config) for config in configs),
    )


def test_parts_that_fit_may_list_what_they_repeat():
    check()
    check(unet={"cross_attention_dim": [16, 16], "layers_per_block": (1, 1)})


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"unet": {"addition_embed_type": "text_time", "cross_attention_dim": 2048}},
         r"fit: the UNet is not of Stable Diffusion 1 or 2 \(addition_embed_type text_time\); SDXL is not"),
        ({"controlnet": {"addition_embed_type": "text_time"}}, "the ControlNet is not of Stable Diffusion 1 or 2"),
        ({"controlnet": {"cross_attention_dim": 48}}, "the ControlNet needs text of width 48, .* encoder's is 16"),
        ({"text": {"hidden_size": 32}}, "the UNet needs text of width 16.*; the ControlNet needs text of width 16"),
        ({"unet": {"in_channels": 9}}, "UNet has 9 input channels, the VAE 4 latent .*9 input and 4 output channels"),
        ({"unet": {"out_channels": 8}}, "4 input and 8 output channels"),
        ({"controlnet": {"block_out_channels": [8, 32]}}, r"of the UNet is \[8, 16\], of the ControlNet \[8, 32\]"),
        ({"controlnet": {"layers_per_block": 2}}, "layers_per_block of the UNet is 1, of the ControlNet 2"),
        ({"vae": {"block_out_channels": [8, 16]}}, "the ControlNet reduces outlines by 4, the VAE images by 2"),
        ({"text": {"vocab_size": 70}}, "the tokenizer has 74 tokens, the text encoder 70"),
        ({"text": {"max_position_embeddings": 20}}, "up to 24 tokens, the text encoder's 20"),
        ({"scheduler": {"prediction_type": "sample"}}, "prediction_type is sample"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "needs prediction_type v_prediction"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_told_by_their_configurations(parts, told):
    with pytest.raises(ValueError, match=told):
        check(**parts)


def test_a_schedule_without_betas_is_refused(tmp_path):
    tiny.generator().save(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}))
    with pytest.raises(ValueError, match="scheduler: FlowMatchEulerDiscreteScheduler is no diffusion schedule"):
        load_generator(tmp_path)
    file.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_min": 0.1, "prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match="EDMEulerScheduler is no diffusion schedule: it has no betas"):
        load_generator(tmp_path)


def test_pickled_weights_are_read_as_tensors_and_a_missing_part_is_told_with_what_lies_there(tmp_path):
    made = tiny.generator()
    made.save(tmp_path)
    place = tmp_path / "unet"
    (place / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unet: no UNet2D.* could be loaded \(.*unet has config\.json\): "):
        load_generator(tmp_path)
    torch.save(made.unet.state_dict(), place / "diffusion_pytorch_model.bin")
    made.text_encoder.save_pretrained(tmp_path / "other")
    (tmp_path / "text_encoder/model.safetensors").unlink()
    torch.save(made.text_encoder.state_dict(), tmp_path / "text_encoder/pytorch_model.bin")
    again = load_generator(tmp_path)
    for name in ("unet", "text_encoder"):
        state = getattr(again, name).state_dict()
        assert all(torch.equal(state[key], weight) for key, weight in getattr(made, name).state_dict().items())
    torch.save(made.unet.state_dict() | {"note": Tokenizer()}, place / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"unet: no UNet2D.* could be loaded \(.*diffusion_pytorch_model\.b"):
        load_generator(tmp_path)
    shutil.rmtree(place)
    with pytest.raises(ValueError, match=r"unet: no UNet.* \(.* has controlnet, model_index\.json, other, scheduler, "):
        load_generator(tmp_path)
