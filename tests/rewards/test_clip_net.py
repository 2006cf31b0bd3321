"""CLIP: preprocessing as by PIL, texts, safe and strict loading, and open_clip's layout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import Transformer
from PIL import Image
from safetensors.torch import save_file

from src.data.images import squared
from src.rewards.clip_net import Clip, ClipSettings, clip_weights
from tests.rewards.tiny import clip_folder

ROOT = Path(__file__).parents[2]
SHIPPED = "src/data/showroom/clip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clip_folder(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="module")
def clip(folder: str) -> Clip:
    torch.manual_seed(0)
    return Clip(ClipSettings(folder)).eval()


def picture(width: int, height: int) -> tuple[Image.Image, torch.Tensor]:
    rough = np.random.default_rng(width).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
    return image, torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("size", [(512, 512), (300, 200), (1000, 333), (60, 91), (32, 20)])
@pytest.mark.parametrize(("resize", "fit"), [("shortest", "crop"), ("longest", "pad")])
def test_preprocessing_agrees_with_pil_to_a_grey_level(folder, size, resize, fit):
    clip = Clip(ClipSettings(folder, resize=resize))
    image, tensor = picture(*size)
    expected = torch.from_numpy(squared(image, 32, fit)) / 255
    found = clip.preprocess(tensor)[0] * clip.std + clip.mean
    assert (found - expected).abs().max() < 2.5 / 255
    assert (found - expected).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("size", [(300, 200), (97, 131)])
def test_cropping_agrees_with_open_clips_own_transform(clip, size):
    image, tensor = picture(*size)
    transform: Any = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    torch.testing.assert_close(clip.preprocess(tensor)[0], transform(image), atol=0.04, rtol=0)


def test_borders_are_black_and_overshoot_is_cut_unless_asked(folder):
    image = torch.zeros(1, 3, 60, 30)
    image[..., 30:, :] = 1
    for clamp in (True, False):
        clip = Clip(ClipSettings(folder, resize="longest", clamp=clamp))
        found = clip.preprocess(image) * clip.std + clip.mean
        assert found.shape == (1, 3, 32, 32)
        torch.testing.assert_close(found[..., :8], torch.zeros(1, 3, 32, 8), atol=1e-6, rtol=0)
        assert (found.max() > 1.01) != clamp


def test_padding_and_other_prompts_do_not_change_a_text(clip):
    short = clip.text_features(["a red chair"])
    both = clip.text_features(["a red chair", "product photo of an oak bench in a retro room, red striped wall"])
    torch.testing.assert_close(short[0], both[0], atol=1e-6, rtol=0)
    long = "chair " * 100
    torch.testing.assert_close(clip.text_features([long]), clip.text_features([long + "red"]))
    torch.testing.assert_close(clip.text_features(["A Red  chair "]), short)
    assert (short.norm(dim=-1) - 1).abs() < 1e-6


def test_the_cosine_is_that_of_open_clip(clip, folder):
    images, prompts = torch.rand(3, 3, 32, 32), ["red chair", "oak bench", "red chair"]
    with torch.no_grad():
        found, tokens = clip(images, prompts), open_clip.get_tokenizer(f"local-dir:{folder}")(prompts)
        left = clip.net.encode_image(clip.preprocess(images), normalize=True)
        right = clip.net.encode_text(tokens, normalize=True)
    torch.testing.assert_close(found, (left * right).sum(dim=-1))


def test_values_and_gradients_are_those_of_the_network_as_open_clip_makes_it(clip, folder):
    """Ours works on (tokens, batch, width)."""
    theirs: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    theirs.load_state_dict(clip.net.state_dict())
    transformers = [part for part in clip.net.modules() if isinstance(part, Transformer)]
    assert transformers
    assert not any(part.batch_first for part in transformers)
    images, tokens = torch.rand(3, 3, 32, 32), torch.randint(2, 300, (3, 24))
    values, gradients = [], []
    for net in (clip.net, theirs):
        pixels = images.clone().requires_grad_()
        values.append(net.encode_image(pixels, normalize=True) @ net.encode_text(tokens, normalize=True).T)
        values[-1].sum().backward()
        gradients.append(pixels.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_relative_folder_is_found_from_anywhere_without_the_hub(tmp_path):
    code = f"from src.rewards.clip_net import *; print(Clip(ClipSettings('{SHIPPED}')).tokenizer(['oak'])[0, :3])"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "1," in made.stdout
    assert not made.stderr, "nothing is logged about random weights"


def test_the_showrooms_clip_is_small_and_knows_every_word():
    clip = Clip(ClipSettings(SHIPPED))
    assert sum(weight.numel() for weight in clip.parameters()) <= 2.5e6
    ids = clip.tokenizer(
        ["product photo of a piano bench in a minimalist room, white painted wall, bleached wood floor"]
    )
    assert clip.tokenizer.tokenizer.unk_token_id not in ids
    assert (ids != 0).sum() == 18 + 1, "16 words, 2 commas and the end"


def weights_of(clip: Clip) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in clip.net.state_dict().items()}


@pytest.mark.parametrize("layout", ["safetensors", "plain", "state_dict", "module", "half", "folder"])
def test_weights_of_every_layout_load(clip, folder, tmp_path, layout):
    state: Any = weights_of(clip)
    file = tmp_path / ("model.safetensors" if layout in ("safetensors", "folder") else "model.pt")
    if layout in ("safetensors", "folder"):
        save_file(state, file)
    elif layout == "half":
        torch.save({key: value.half() for key, value in state.items()}, file)
    else:
        state = {f"module.{key}": value for key, value in state.items()} if layout == "module" else state
        torch.save({"state_dict": state, "epoch": 3} if layout == "state_dict" else state, file)
    loaded = Clip(ClipSettings(folder, str(tmp_path if layout == "folder" else file)))
    for key, value in loaded.net.state_dict().items():
        assert value.dtype == torch.float32 or not value.is_floating_point()
        torch.testing.assert_close(value, clip.net.state_dict()[key], atol=1e-3 if layout == "half" else 0, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("logit_scale"), "it lacks logit_scale"),
        (lambda state: state.update(extra=torch.ones(1)), "it has the unknown extra"),
        (lambda state: state.update(ln_final=torch.ones(1)), "it has the unknown ln_final"),
        (
            lambda state: state.update({"visual.proj": torch.ones(2, 2)}),
            r"has another shape for visual.proj \(2, 2\) instead of \(32, 16\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(clip, folder, tmp_path, change, told):
    state = weights_of(clip)
    change(state)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=told):
        Clip(ClipSettings(folder, str(tmp_path / "bad.safetensors")))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_pickles_and_files_without_weights_are_refused(folder, tmp_path, capsys):
    torch.save({"state_dict": {}, "args": Evil()}, tmp_path / "evil.pt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "none.pt")
    for name, told in (("evil", "cannot be read as plain weights"), ("none", "holds no state dict")):
        with pytest.raises(ValueError, match=told):
            Clip(ClipSettings(folder, str(tmp_path / f"{name}.pt")))
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere.pt"):
        Clip(ClipSettings(folder, str(tmp_path / "nowhere.pt")))


def test_openais_numbers_are_no_weights(tmp_path):
    torch.save({"a": torch.ones(2), "vocab_size": torch.tensor(3)}, tmp_path / "openai.pt")
    assert list(clip_weights(tmp_path / "openai.pt")) == ["a"]


def test_names_that_do_not_exist_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"'ViT-L-41'.*similar names: .*ViT-L-14"):
        Clip(ClipSettings("ViT-L-41"))
    with pytest.raises(ValueError, match="resize=wide: choose from shortest"):
        Clip(ClipSettings(SHIPPED, resize="wide"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 8, "vision": {}}}))
    with pytest.raises(ValueError, match="cannot be built"):
        Clip(ClipSettings(str(tmp_path)))
