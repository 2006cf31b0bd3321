"""A vision-language model as a reward: tiny models of two families against the model and its processor themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from src.rewards.vlm import YesNo
from tests.rewards import published

MAKERS = {"qwen": published.qwen, "idefics": published.idefics}
PROMPTS = ["red chair", "oak chair or a brown chair", "a"]


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_it_is_the_models_own_answer(folder: str):
    """Of a PIL image through the processor alone, without padding. Idefics also reads the image at half size, which the
    processor rounds and clamps to 8 bits."""
    near = 1e-2 if "idefics" in folder else 1e-5
    reward = YesNo(folder)
    levels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    words = processor.tokenizer.get_vocab()
    expected, mass = [], []
    for prompt, level in zip(PROMPTS, levels, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": f'Does this image show "{prompt}"? Answer yes or no.'}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = Image.fromarray(level.permute(1, 2, 0).numpy())
        inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
        likely = model(**inputs).logits[0, -1].softmax(dim=-1)
        yes, no = likely[words["yes"]] + likely[words["Yes"]], likely[words["no"]]
        expected.append(yes / (yes + no))
        mass.append(yes + no)
    score = reward(levels / 255, {"prompt": PROMPTS})
    torch.testing.assert_close(score.value.exp(), torch.stack(expected), atol=near, rtol=near)
    torch.testing.assert_close(score.parts["answered"], torch.stack(mass), atol=near, rtol=near)


def test_rows_of_different_questions_and_the_gradient(folder: str):
    reward, images = YesNo(folder), torch.rand(3, 3, 40, 28, requires_grad=True)
    value = reward(images, {"prompt": PROMPTS}).value
    for row, prompt in enumerate(PROMPTS):
        alone = reward(images[row : row + 1], {"prompt": [prompt]}).value
        torch.testing.assert_close(alone, value[row : row + 1], atol=1e-5, rtol=1e-5)
    value.sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_the_question_decides_the_fields(folder: str):
    image = torch.rand(1, 3, 32, 32)
    assert YesNo(folder).fields == {"prompt"}
    plain = YesNo(folder, "Does this image show a chair?")
    assert plain.fields == frozenset()
    same = YesNo(folder, "Does this image show {title}?", threshold=None)
    assert (same.fields, same.threshold, plain.threshold) == ({"title"}, None, -0.69)
    assert same(image, {"title": ["a chair"]}).value == plain(image, {}).value
    with pytest.raises(ValueError, match=r"names product; it may name (prompt, title|title, prompt)"):
        YesNo(folder, "Is {product} there?")


def test_tokens_of_images_in_a_prompt_are_only_text(folder: str):
    reward = YesNo(folder)
    for token in ("<image>", "<|image_pad|>"):
        assert reward(torch.rand(1, 3, 32, 32), {"prompt": [f"a {token} chair"]}).value.isfinite()


def test_options_reach_the_image_processor(tmp_path: Path):
    folder, images = published.idefics(tmp_path), torch.rand(1, 3, 32, 32)
    whole = YesNo(folder, image_options={"do_image_splitting": False})
    assert whole(images, {"prompt": ["a"]}).value != YesNo(folder)(images, {"prompt": ["a"]}).value
    assert YesNo(folder, dtype="bfloat16")(images, {"prompt": ["a"]}).value.dtype == torch.float32


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def less(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "q_proj" in name))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (less, r"lacks 1 weights of its model: .*q_proj"),
        (without("chat_template.jinja"), "has no chat template"),
        (without("model.safetensors"), "cannot be loaded"),
        (without("config.json"), "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, change: Callable[[Path], object], told: str):
    folder = Path(published.qwen(tmp_path))
    change(folder)
    with pytest.raises(ValueError, match=told):
        YesNo(str(folder))


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="dtype=int8: choose from float32"):
        YesNo("any", dtype="int8")
    monkeypatch.setattr(published, "WORDS", tuple(word for word in published.WORDS if word != "no"))
    with pytest.raises(ValueError, match="has no token for 'no'"):
        YesNo(published.qwen(tmp_path))
