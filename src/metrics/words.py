"""How well misaligned words of a prompt are found: precision, recall and F1."""

import torch
from torch import Tensor
from torchmetrics import Metric


def word_counts(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Misaligned words that are both predicted and true, predicted, and true: (batch, 3) integers.

    All arguments are bool (batch, words). True is a misaligned word (RichHF-18K's labels are the other way round), in
    `mask` a word that is no padding. Raises ValueError for another type, or shapes that differ.
    """
    for name, flags in (("predicted", predicted), ("true", true), ("mask", mask)):
        if flags.dtype != torch.bool or flags.ndim != 2 or flags.shape != true.shape:
            raise ValueError(
                f"{name} words {tuple(flags.shape)} {flags.dtype}: bool (batch, words) is needed, as the true words "
                f"{tuple(true.shape)}."
            )
    return torch.stack([(flags & mask).sum(dim=1) for flags in (predicted & true, predicted, true)], dim=1)


def precision_recall_f1(counts: Tensor, zero_division: float = 0.0) -> Tensor:
    """(..., 3) in [0, 1] from the counts (..., 3) of `word_counts`.

    `zero_division`: the precision if no word is predicted, the recall if none is true, F1 if neither.
    """
    hits, found, there = counts.unbind(dim=-1)
    top, bottom = torch.stack([hits, hits, 2 * hits], dim=-1), torch.stack([found, there, found + there], dim=-1)
    return torch.where(bottom > 0, top / bottom.clamp_min(1), zero_division)


class MisalignedWords(Metric):
    """Precision, recall and F1 of misaligned words over all samples that were added, in all processes.

    word_precision, word_recall, word_f1: of the pooled counts of all words; 0 where there is nothing to count. Those
    with _per_sample: means of each sample's; `zero_division` is what a sample without a predicted or true word has. At
    0, as in common evaluation code, a sample without misaligned words counts 0 even if it is right. All 0 without a
    sample. num_words, num_misaligned: the number of words, and of those truly misaligned.
    """

    full_state_update = False
    counts: Tensor
    num_words: Tensor
    sums: Tensor
    num: Tensor

    def __init__(self, zero_division: float = 0.0) -> None:
        super().__init__()
        self.zero_division = zero_division
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("num_words", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("num", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, true: Tensor, mask: Tensor) -> None:
        """Adds samples; all bool (batch, words), see `word_counts`."""
        counts = word_counts(predicted, true, mask)
        self.counts = self.counts + counts.sum(dim=0)
        self.num_words = self.num_words + mask.sum()
        self.sums = self.sums + precision_recall_f1(counts, self.zero_division).sum(dim=0)
        self.num = self.num + len(counts)

    def compute(self) -> dict[str, Tensor]:
        names = ("word_precision", "word_recall", "word_f1")
        pooled, means = precision_recall_f1(self.counts), self.sums / self.num.clamp_min(1)
        found = dict(zip(names, pooled, strict=True))
        found |= {f"{name}_per_sample": mean for name, mean in zip(names, means, strict=True)}
        return found | {"num_words": self.num_words, "num_misaligned": self.counts[2]}
