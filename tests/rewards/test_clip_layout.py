"""Weights of transformers' CLIPModel in the network of open_clip: the same cosines as transformers computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from src.rewards.clip_layout import from_transformers
from src.rewards.clip_net import Clip, ClipSettings
from tests.rewards import published
from tests.rewards.tiny import clip_folder


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_cosine_is_that_of_transformers(tmp_path: Path, prefix: str):
    model = published.clip()
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    clip = Clip(ClipSettings(clip_folder(tmp_path / "clip"), str(tmp_path))).eval()
    images, prompts = torch.rand(3, 3, 40, 50), ["a red chair", "oak", "a bench in a very classic room"]
    with torch.no_grad():
        found, tokens = clip(images, prompts), clip.tokenizer(prompts)
        given: Any = {"input_ids": tokens, "attention_mask": tokens != 0, "pixel_values": clip.preprocess(images)}
        out = model(**given)
    torch.testing.assert_close(found, out.logits_per_image.diagonal() / model.logit_scale.exp(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(clip.text_features(prompts), F.normalize(out.text_embeds, dim=-1), atol=1e-6, rtol=1e-5)


def test_what_is_missing_or_unknown_is_refused(tmp_path: Path):
    clip, state = Clip(ClipSettings(clip_folder(tmp_path / "clip"))), published.clip().state_dict()
    for name, told in (
        (
            "vision_model.encoder.layers.1.self_attn.k_proj.weight",
            r"another shape for visual.*in_proj_weight \(64, 32\)",
        ),
        ("text_model.final_layer_norm.bias", "lacks ln_final.bias"),
    ):
        less = {key: value.contiguous() for key, value in state.items() if key != name}
        save_file(less, tmp_path / "less.safetensors")
        with pytest.raises(ValueError, match=told):
            Clip(ClipSettings(clip.name.removeprefix("local-dir:"), str(tmp_path / "less.safetensors")))
    assert "head.weight" in from_transformers({**state, "head.weight": torch.ones(1)})
    other = {"visual.proj": torch.ones(2, 3)}
    assert from_transformers(other) is other
