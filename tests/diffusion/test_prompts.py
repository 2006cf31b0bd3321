"""Long prompts: cut, read in windows that no other prompt changes, or refused; what is not read is known."""

import pytest
import torch

from src.diffusion.clip_tokenizer import clip_tokenizer
from src.diffusion.prompts import text_states, unread_words
from tests.diffusion import tiny

LONG = " ".join("abcdefghij"[n % 10] for n in range(50))  # 50 words of a token each, of which 22 fit


@pytest.fixture(scope="module")
def painter():
    return tiny.generator(num_steps=2, long_prompts="windows")


def test_windows_are_those_that_are_encoded_one_by_one(painter):
    parts = [" ".join(LONG.split()[start : start + 22]) for start in (0, 22, 44)]
    states = painter.words([LONG, "a", ""])
    assert states.shape == (3, 72, 16)
    reader = (painter.tokenizer, painter.text_encoder)
    torch.testing.assert_close(states[0], text_states(*reader, parts).flatten(0, 1))
    for row, prompt in ((1, "a"), (2, "")):  # repeated
        torch.testing.assert_close(states[row], text_states(*reader, [prompt])[0].repeat(3, 1))
    assert torch.equal(painter.words(["a", "b"]), text_states(*reader, ["a", "b"]))


def test_words_are_not_split_between_windows(painter):
    states = painter.words(["a " * 20 + "bcd e"])  # 20 tokens, 3, 1; 22 fit
    expected = text_states(painter.tokenizer, painter.text_encoder, ["a " * 20, "bcd e"]).flatten(0, 1)
    torch.testing.assert_close(states[0], expected)
    assert painter.words(["a" * 50]).shape == (1, 72, 16)  # a word that is longer than a window


def test_a_picture_does_not_depend_on_the_length_of_the_other_prompts(painter):
    batch = tiny.ads(3) | {"prompt": ["a red room", LONG, "b " * 40]}  # of 1, 3 and 2 windows
    conditions = painter.encode(batch)
    assert conditions.text.shape == (6, 6 * 24, 16)
    together = painter.sample(conditions)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        torch.testing.assert_close(painter.sample(painter.encode(alone))[0], together[row], atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="the prompt of ad1 is truncated to 24 tokens"):
        cut = tiny.generator(num_steps=2).encode(batch)
    assert float((painter.sample(cut) - together)[1].abs().max()) > 1e-3


def test_a_prompt_may_be_refused_and_a_wrong_word_is():
    painter = tiny.generator(long_prompts="refuse", negative_prompt="x")
    with pytest.raises(
        ValueError, match=r"the prompt of ad1 has 52 tokens, 24 are read: a b c d e f \.\.\.; shorten it"
    ):
        painter.encode(tiny.ads(2) | {"prompt": ["a", LONG]})
    with pytest.raises(ValueError, match="long_prompts=join: choose from cut, windows, refuse"):
        tiny.generator(long_prompts="join")


def test_the_words_that_are_not_read_are_known():
    assert unread_words(tiny.tokenizer(), LONG) == LONG.split()[22:]
    assert unread_words(tiny.tokenizer(), "a " * 22) == []
    assert unread_words(tiny.tokenizer(), "a " * 20 + "bcd e") == ["bcd", "e"]  # read in part
    words = [f"Word{n}," for n in range(120)]
    words[99] = "teal"
    lost = unread_words(clip_tokenizer(second=False), "  ".join(words))
    assert lost == words[-len(lost) :]
    assert "teal" in lost
