"""Prompts as words, with a mark after each misaligned one: `a yellow_0 cat` (arXiv 2312.10240, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from src.data.batch import PADDING
from src.data.words import split_words

MARK = "_0"


@dataclass(frozen=True)
class Tokens:
    """Token numbers (batch, longest) of texts and their mask, bool, False at padding."""

    ids: Tensor
    mask: Tensor


class MarkedPrompts:
    """Turns prompts into tokens and marks, word by word, so that every prefix of a marked prompt has one tokenization.

    tokenizer: of transformers, with end and padding tokens. max_tokens: of a prompt; the words beyond are cut, and
    neither learned nor predicted.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.of_word = cache(lambda word: tuple(tokenizer(word, add_special_tokens=False)["input_ids"]))
        self.mark = self.of_word(f"a{MARK}")[len(self.of_word("a")) :]
        if not self.mark or tokenizer.unk_token_id in self.mark:
            raise ValueError(f"the tokenizer cannot write the mark {MARK!r} after a word.")

    def words(self, prompt: str) -> list[tuple[int, ...]]:
        """The tokens of each word of a prompt that fits, by the words of RichHF-18K."""
        words, left = [], self.max_tokens - 1
        for word in split_words(prompt):
            tokens = self.of_word(word)
            if (left := left - len(tokens)) < 0:
                break
            words.append(tokens)
        return words

    def inputs(self, prompts: Sequence[str], task: str = "") -> Tokens:
        """What the encoder reads: the task's words, the prompt's words, the end."""
        before = [token for word in task.split() for token in self.of_word(word)]
        return self._padded([[*before, *(t for word in self.words(prompt) for t in word)] for prompt in prompts])

    def targets(self, prompts: Sequence[str], aligned: Tensor, keys: Sequence[str]) -> Tokens:
        """What the decoder learns to write; `aligned` (batch, words): 1, 0 for a misaligned word, -100 at padding.

        Raises ValueError naming the key of a record that does not have one label for each word.
        """
        rows = []
        for prompt, labels in zip(prompts, word_labels(prompts, aligned, keys), strict=True):
            words = self.words(prompt)
            rows.append([t for word, label in zip(words, labels, strict=False) for t in self.marked(word, not label)])
        return self._padded(rows)

    def marked(self, word: tuple[int, ...], misaligned: bool) -> tuple[int, ...]:
        return word + self.mark if misaligned else word

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tokens:
        longest = 1 + max(map(len, rows))
        ids = torch.tensor([[*row, self.end, *[self.pad] * (longest - 1 - len(row))] for row in rows])
        lengths = torch.tensor([1 + len(row) for row in rows])
        return Tokens(ids, torch.arange(longest) < lengths[:, None])

    @torch.no_grad()
    def constrained(self, decoder: Any, memory: Any, mask: Tensor, prompts: Sequence[str]) -> Tensor:
        """p(misaligned) of each word (batch, words), nan beyond the words: exact greedy decoding of the two forms.

        After a word the decoder can only write the mark, or go on with the next word or the end; the likelier of the
        two is kept. All words are decided at once, given the marks found so far, until no mark changes: that is the
        result of deciding them one after the other, in a few passes (a pass more for each mark that depends on the
        last). decoder: a T5ForConditionalGeneration; memory, mask: what it attends to.
        """
        words = [self.words(prompt) for prompt in prompts]
        longest, device = max(map(len, words), default=0), mask.device
        exists = torch.tensor(
            [[n < len(row) for n in range(longest)] for row in words], dtype=torch.bool, device=device
        )
        following = torch.tensor(
            [[*(word[0] for word in row[1:]), *[self.end] * (longest - len(row) + bool(row))] for row in words],
            device=device,
        )  # (batch, words): the first token of the next word
        chances = torch.zeros(exists.shape, device=device)
        for _ in range(longest + 1):  # each pass settles one more word at least
            marks = (chances > 0.5).tolist()
            written = [
                [self.marked(*pair) for pair in zip(row, m, strict=False)] for row, m in zip(words, marks, strict=True)
            ]
            ids = self._padded([[token for word in row for token in word] for row in written]).ids.to(device)
            ends = torch.zeros(exists.shape, dtype=torch.long)  # of each word, before its mark
            for row, (plain, forms) in enumerate(zip(words, written, strict=True)):
                at = 0
                for number, (word, form) in enumerate(zip(plain, forms, strict=True)):
                    ends[row, number], at = at + len(word), at + len(form)
            start = ids.new_full((len(ids), 1), decoder.config.decoder_start_token_id)
            logits = decoder(
                encoder_outputs=BaseModelOutput(memory),
                attention_mask=mask,
                decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1),
            ).logits.float()
            after = logits[torch.arange(len(ids), device=device)[:, None], ends.to(device)]  # (batch, words, tokens)
            if not after[exists].isfinite().all():
                raise ValueError("the decoder's logits are NaN or infinite.")
            new = (after[..., self.mark[0]] - after.gather(2, following[..., None])[..., 0]).sigmoid()
            done = torch.equal((new > 0.5) & exists, (chances > 0.5) & exists)
            chances = new.masked_fill(~exists, 0.0)
            if done:
                break
        return chances.masked_fill(~exists, torch.nan)

    @torch.no_grad()
    def free(self, decoder: Any, memory: Any, mask: Tensor, prompts: Sequence[str]) -> Tensor:
        """1 for a misaligned word, else 0, (batch, words), nan beyond the words: greedy decoding, aligned afterwards.

        The decoder may drop or repeat words: what it writes is matched with the prompt's words, and a word without a
        match is aligned.
        """
        longest = self._padded([[t for word in self.words(p) for t in self.marked(word, True)] for p in prompts])
        ids = decoder.generate(
            encoder_outputs=BaseModelOutput(memory),
            attention_mask=mask,
            max_new_tokens=longest.ids.shape[1],
            do_sample=False,
        )
        ends = [[token for token in row if token not in (self.pad, self.end)] for row in ids.tolist()]
        texts = self.tokenizer.batch_decode(ends)  # with the unknown token, which stands for a word
        rows = [matched([self._text(word) for word in self.words(p)], t) for p, t in zip(prompts, texts, strict=True)]
        longest = max(map(len, rows), default=0)
        return torch.tensor([[*row, *[torch.nan] * (longest - len(row))] for row in rows])

    def _text(self, word: tuple[int, ...]) -> str:
        return self.tokenizer.decode(word).replace(" ", "")


def word_labels(prompts: Sequence[str], aligned: Tensor, keys: Sequence[str]) -> list[list[int]]:
    """The labels of each prompt's words, without padding; `aligned`: see `MarkedPrompts.targets`.

    Raises ValueError naming the key of a record that does not have one label for each word.
    """
    rows = [[label for label in row if label != PADDING] for row in aligned.tolist()]
    for prompt, labels, key in zip(prompts, rows, keys, strict=True):
        if len(labels) != (count := len(split_words(prompt))):
            raise ValueError(f"Record '{key}': {len(labels)} word labels for the {count} words of {prompt!r}.")
    return rows


def matched(words: Sequence[str], text: str) -> list[float]:
    """1 for each of `words` that `text`, in which words may be missing or doubled, writes with a mark; else 0."""
    written = text.replace(f" {MARK}", MARK).split()
    plain = [word.removesuffix(MARK) for word in written]
    marks = [0.0] * len(words)
    for block in SequenceMatcher(None, words, plain, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            marks[block.a + offset] = float(written[block.b + offset].endswith(MARK))
    return marks
