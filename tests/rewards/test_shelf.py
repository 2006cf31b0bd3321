"""The rewards from published weights against other implementations of the same networks, with random weights.

PickScore: CLIP of transformers. Aesthetic: the same, and matrix products. ImageReward: the vision tower of BLIP of
transformers, and a text encoder that is written out here. The weights are saved in the layout of the published files
and loaded by the reward's own path.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoTokenizer, BlipVisionConfig, BlipVisionModel

from src.build import build
from src.config import CONF
from src.models.rfft.regularizers import NoRegularizer
from src.models.rfft.steps import LateRandom
from src.models.rfft.system import RFFT
from src.rewards.aesthetic import Aesthetic
from src.rewards.clip_net import Clip, ClipSettings
from src.rewards.imagereward import MEAN, STD, TOKENS, Blip, ImageReward, Sizes
from src.rewards.pickscore import PickScore
from tests.diffusion import tiny as painters
from tests.models.stepping import one_step
from tests.rewards import published, tiny

PROMPTS = ["a red chair", "", "product photo of an oak bench in a very classic room, red wall " * 4]
State = dict[str, Tensor]


def pictures(rows: int = 3, size: tuple[int, int] = (40, 52)) -> Tensor:
    return torch.rand(rows, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_pickscore_is_that_of_transformers(tmp_path: Path):
    reward, model = PickScore(**tiny.pickscore(tmp_path)), published.clip()
    assert reward.highest == pytest.approx(float(model.logit_scale.exp()))
    tokens = reward.clip.tokenizer(PROMPTS)
    given: Any = {"input_ids": tokens, "attention_mask": tokens != 0}
    expected = model(pixel_values=reward.clip.preprocess(pictures()), **given).logits_per_image.diagonal()
    torch.testing.assert_close(reward(pictures(), {"prompt": PROMPTS}).value, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01


@torch.no_grad()
def test_aesthetic_is_a_linear_stack_on_unit_features(tmp_path: Path):
    made = tiny.aesthetic(tmp_path)
    published.clip().save_pretrained(tmp_path / "transformers")
    reward = Aesthetic(**{**made, "weights": str(tmp_path / "transformers")})
    head = torch.load(made["head"])
    assert {name: tuple(value.shape) for name, value in head.items() if "weight" in name} == {
        "layers.0.weight": (1024, 16), "layers.2.weight": (128, 1024), "layers.4.weight": (64, 128),
        "layers.6.weight": (16, 64), "layers.7.weight": (1, 16),
    }  # fmt: skip
    model = published.clip()
    values = model.vision_model(pixel_values=reward.clip.preprocess(pictures())).pooler_output
    values = values @ model.visual_projection.weight.T
    values = values / values.square().sum(dim=1, keepdim=True).sqrt()
    for number in (0, 2, 4, 6, 7):
        values = values @ head[f"layers.{number}.weight"].T + head[f"layers.{number}.bias"]
    torch.testing.assert_close(reward(pictures(), {}).value, values[:, 0], atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def imagereward(tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    made = tiny.imagereward(tmp_path_factory.mktemp("imagereward"))
    return ImageReward(made["weights"], made["tokenizer"], Sizes(**made["sizes"]))


def seen(images: Tensor, state: State) -> Tensor:
    """The tokens of BLIP's vision tower, by transformers."""
    config = BlipVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        layer_norm_eps=1e-6, hidden_act="gelu",
    )  # fmt: skip
    names = {
        "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding", "blocks": "encoder.layers", "attn.qkv": "self_attn.qkv",
        "attn.proj": "self_attn.projection", "norm1": "layer_norm1", "norm2": "layer_norm2",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            name = f"post_layernorm.{name[5:]}" if name.startswith("norm.") else name
            for old, new in names.items():
                name = name.replace(old, new)
            renamed[name] = value
    model = BlipVisionModel(config).eval()
    model.load_state_dict(renamed)
    return model(pixel_values=images).last_hidden_state


def read(ids: Tensor, mask: Tensor, images: Tensor, state: State) -> Tensor:
    """The tokens of a BERT whose layers attend to the text, then to the image (Li et al. 2022, arXiv 2201.12086)."""
    weights = {
        name.removeprefix("blip.text_encoder."): value.double()
        for name, value in state.items()
        if name.startswith("blip.text_encoder.")
    }

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(values: Tensor, name: str) -> Tensor:
        centered = values - values.mean(dim=-1, keepdim=True)
        scaled = centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attended(values: Tensor, to: Tensor, name: str, masked: Tensor | None) -> Tensor:
        heads = [
            linear(x, f"{name}.self.{part}").unflatten(-1, (2, -1)).transpose(1, 2)
            for x, part in ((values, "query"), (to, "key"), (to, "value"))
        ]
        query, key, value = heads
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if masked is not None:
            logits = logits.masked_fill(masked[:, None, None], -torch.inf)
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        return norm(linear(mixed, f"{name}.output.dense") + values, f"{name}.output.LayerNorm")

    embedded = weights["embeddings.word_embeddings.weight"][ids]
    embedded = embedded + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    values = norm(embedded, "embeddings.LayerNorm")
    for number in range(2):
        layer = f"encoder.layer.{number}"
        values = attended(values, values, f"{layer}.attention", mask == 0)
        values = attended(values, images.double(), f"{layer}.crossattention", None)
        wide = F.gelu(linear(values, f"{layer}.intermediate.dense"))
        values = norm(linear(wide, f"{layer}.output.dense") + values, f"{layer}.output.LayerNorm")
    return values


@torch.no_grad()
def test_imagereward_is_the_published_network(imagereward: ImageReward):
    state, images = published.blip(), imagereward.preprocess(pictures())
    tokenizer: Any = AutoTokenizer.from_pretrained("src/data/showroom/text")
    ids = torch.zeros(3, TOKENS, dtype=torch.long)
    for row, prompt in zip(ids, PROMPTS, strict=True):
        tokens = tokenizer(prompt)["input_ids"]
        tokens = [*tokens[: TOKENS - 1], tokens[-1]] if len(tokens) > TOKENS else tokens
        row[: len(tokens)] = torch.tensor(tokens)
    values = read(ids, (ids != 0).long(), seen(images, state), state)[:, 0]
    for number in (0, 2, 4, 6, 7):
        values = values @ state[f"mlp.layers.{number}.weight"].double().T + state[f"mlp.layers.{number}.bias"]
    expected = ((values[:, 0] - MEAN) / STD).float()
    found = imagereward(pictures(), {"prompt": PROMPTS}).value
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 0.01


def test_imagereward_reads_35_tokens(imagereward: ImageReward):
    images, long = pictures(2), "chair " * 60
    same = imagereward(images[:1].expand(2, -1, -1, -1), {"prompt": [long, f"{long} red"]}).value
    assert same[0] == same[1]
    short = imagereward(images[:1].expand(2, -1, -1, -1), {"prompt": ["chair " * 33, "chair " * 32]}).value
    assert short[0] != short[1]


def test_the_published_sizes_are_those_of_vit_l_and_bert_base():
    with torch.device("meta"):
        net = Blip(Sizes())
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len([name for name in shapes if name.startswith("blip.visual_encoder.blocks.")]) == 24 * 12
    assert len([name for name in shapes if name.startswith("blip.text_encoder.encoder.layer.")]) == 12 * 26
    assert shapes["blip.visual_encoder.pos_embed"] == (1, 197, 1024)
    assert shapes["blip.visual_encoder.blocks.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["blip.text_encoder.embeddings.word_embeddings.weight"] == (30524, 768)
    assert shapes["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["mlp.layers.0.weight"] == (1024, 768)


@pytest.mark.parametrize("name", ["pickscore", "aesthetic", "imagereward"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str):
    made: dict[str, Any] = getattr(tiny, name)(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    key = "head" if name == "aesthetic" else "weights"
    kind: Any = {"pickscore": PickScore, "aesthetic": Aesthetic, "imagereward": ImageReward}[name]
    made["sizes"] = Sizes(**made.pop("sizes")) if "sizes" in made else None
    made = {option: value for option, value in made.items() if value is not None}
    for wrong, told in (("other.pt", r"it lacks .* has the unknown a; 0 of \d+ tensors match"), ("b", "no file or")):
        with pytest.raises(ValueError, match=told):
            kind(**{**made, key: str(tmp_path / wrong)})
    if name == "imagereward":
        with pytest.raises(ValueError, match=r"tokenizer=.*nowhere cannot be had"):
            kind(**{**made, "tokenizer": str(tmp_path / "nowhere")})


def test_features_are_scaled_to_length_1(tmp_path: Path):
    """Without, values of the predictor are 20 to 30."""
    made = tiny.aesthetic(tmp_path)
    clip = Clip(ClipSettings(made["name"], made["weights"]))
    assert torch.allclose(clip.image_features(pictures()).norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("name", ["pickscore", "aesthetic", "imagereward", "vlm"])
def test_each_drives_rfft(tmp_path: Path, name: str):
    reward: Any = build(OmegaConf.merge(OmegaConf.load(CONF / f"reward/{name}.yaml"), getattr(tiny, name)(tmp_path)))
    system = RFFT(painters.generator(), reward, NoRegularizer(), LateRandom(1 / 3), rank=2, trainable="unet")
    before = {key: weight.clone() for key, weight in reward.named_parameters()}
    step = one_step(system, painters.ads(2))
    assert step.gradients
    assert all(gradient.isfinite().all() for gradient in step.gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in step.gradients.values())
    assert all(torch.equal(weight, before[key]) for key, weight in reward.named_parameters())
