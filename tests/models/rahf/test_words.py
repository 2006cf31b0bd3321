"""Marked prompts: tokens word by word, and what constrained and free decoding make of them."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from src.data.words import split_words
from src.models.rahf.words import MarkedPrompts, matched
from src.runtime.checkpoint import located

T5 = located("src/data/showroom/t5")
PROMPTS = ["a red cat-dog, next to a chair", "oak zebra"]


@pytest.fixture(scope="module")
def prompts() -> MarkedPrompts:
    return MarkedPrompts(AutoTokenizer.from_pretrained(T5), 24)


@pytest.fixture(scope="module")
def decoder() -> Any:
    torch.manual_seed(0)
    config = T5Config.from_pretrained(T5, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config).eval()


def test_targets_are_the_words_with_marks_after_those_that_are_misaligned(prompts):
    aligned = torch.tensor([[1, 0, 1, 1, 1, 1, 0], [0, 1, -100, -100, -100, -100, -100]])
    targets = prompts.targets(PROMPTS, aligned, ["first", "second"])
    texts = prompts.tokenizer.batch_decode(targets.ids, skip_special_tokens=True)
    assert texts == ["a red_0 cat-dog next to a chair_0", "oak_0 zebra"]
    assert [prompts.end in row for row in targets.ids.tolist()] == [True, True]
    assert targets.mask.sum(dim=1).tolist() == [row.index(prompts.end) + 1 for row in targets.ids.tolist()]
    assert (targets.ids[~targets.mask] == prompts.pad).all()


def test_the_encoder_reads_the_task_then_the_words_without_punctuation(prompts):
    inputs = prompts.inputs(PROMPTS[:1], "plausibility score")
    assert prompts.tokenizer.decode(inputs.ids[0], skip_special_tokens=True) == (
        "plausibility score a red cat-dog next to a chair"
    )


def test_labels_that_are_not_one_a_word_name_the_record(prompts):
    with pytest.raises(ValueError, match="Record 'second': 1 word labels for the 2 words of 'oak zebra'"):
        prompts.targets(PROMPTS, torch.tensor([[1] * 7, [1] + [-100] * 6]), ["first", "second"])


def test_a_tokenizer_that_cannot_write_the_mark_is_refused():
    with pytest.raises(ValueError, match="cannot write the mark '_0'"):
        MarkedPrompts(AutoTokenizer.from_pretrained(located("src/data/showroom/text")), 8)


def test_words_beyond_the_limit_are_cut(prompts):
    short = MarkedPrompts(prompts.tokenizer, 4)
    assert [short.tokenizer.decode(word) for word in short.words("red chair oak table")] == ["red", "chair", "oak"]
    targets = short.targets(["red chair oak table"], torch.tensor([[1, 0, 1, 0]]), ["x"])
    assert short.tokenizer.decode(targets.ids[0], skip_special_tokens=True) == "red chair_0 oak"


def test_constrained_decoding_is_greedy_search_over_both_forms_of_each_word(prompts, decoder):
    memory, mask = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    found = prompts.constrained(decoder, memory, mask, PROMPTS)
    assert found.shape == (2, 7)
    assert found[1, 2:].isnan().all()
    for row, prompt in enumerate(PROMPTS):
        words, written = prompts.words(prompt), [decoder.config.decoder_start_token_id]
        for number, word in enumerate(words):
            written += word
            logits = decoder(
                encoder_outputs=(memory[row : row + 1],),
                attention_mask=mask[row : row + 1],
                decoder_input_ids=torch.tensor([written]),
            ).logits[0, -1]
            following = words[number + 1][0] if number + 1 < len(words) else prompts.end
            chance = torch.stack([logits[prompts.mark[0]], logits[following]]).softmax(0)[0]
            torch.testing.assert_close(found[row, number], chance.detach(), atol=1e-5, rtol=1e-5)
            if chance > 0.5:
                written += prompts.mark


def test_a_decoder_that_learned_the_marks_gives_them_in_both_ways(prompts, decoder):
    texts = [*PROMPTS, "日 chair"]  # with an unknown character
    memory, mask = torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool)
    aligned = torch.tensor([[1, 0, 1, 1, 1, 1, 0], [0, 1, *[-100] * 5], [0, 1, *[-100] * 5]])
    targets = prompts.targets(texts, aligned, texts)
    assert prompts.tokenizer.unk_token_id in targets.ids[2]
    labels = targets.ids.masked_fill(~targets.mask, -100)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(150):
        loss = decoder(encoder_outputs=(memory,), attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = torch.where(aligned < 0, torch.nan, 1.0 - aligned)
    for way in (prompts.constrained, prompts.free):
        torch.testing.assert_close(way(decoder, memory, mask, texts).round(), wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("a red_0 cat", [0, 1, 0]),
        ("a red_0 red_0 cat_0", [0, 1, 1]),  # doubled
        ("red_0 cat", [0, 1, 0]),  # dropped
        ("a red _0 cat", [0, 1, 0]),
        ("something else_0", [0, 0, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_written_words_are_matched_with_the_prompt(text, marks):
    assert matched(split_words("a red, cat"), text) == marks
