"""Word measures against numbers worked by hand and scikit-learn."""

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from src.metrics.words import MisalignedWords, precision_recall_f1, word_counts

NAMES = ("word_precision", "word_recall", "word_f1")


def flags(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "1" for character in row] for row in rows])


def values(metric: MisalignedWords, suffix: str = "") -> list[float]:
    found = metric.compute()
    return [float(found[name + suffix]) for name in NAMES]


def test_by_hand():
    """Three samples of 4, 2 and 3 words; what lies in the padding does not count."""
    predicted, true = flags("1100", "1011", "0001"), flags("1010", "1000", "0000")
    mask = flags("1111", "1100", "1110")
    counts = word_counts(predicted, true, mask)
    assert counts.tolist() == [[1, 2, 2], [1, 1, 1], [0, 0, 0]]
    metric = MisalignedWords()
    metric.update(predicted, true, mask)
    assert values(metric) == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert values(metric, "_per_sample") == pytest.approx([0.5, 0.5, 0.5])  # of 0.5, 1 and 0
    assert [int(metric.compute()[name]) for name in ("num_words", "num_misaligned")] == [9, 3]
    kind = MisalignedWords(zero_division=1)
    kind.update(predicted, true, mask)
    assert values(kind, "_per_sample") == pytest.approx([2.5 / 3] * 3)
    assert values(kind) == values(metric)


def test_what_has_nothing_to_count_on():
    # nothing predicted, nothing true, neither, nothing right
    counts = torch.tensor([[0, 0, 2], [0, 2, 0], [0, 0, 0], [0, 1, 1]])
    assert precision_recall_f1(counts).tolist() == [[0, 0, 0]] * 4
    assert precision_recall_f1(counts, 1.0).tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]]
    metric = MisalignedWords()
    none = torch.zeros(2, 0, dtype=torch.bool)
    metric.update(none, none, none)
    assert values(metric) == values(metric, "_per_sample") == [0, 0, 0]


@pytest.mark.parametrize("zero", [0, 1])
def test_agrees_with_scikit_learn_for_any_split_into_batches(zero: int):
    generator = torch.Generator().manual_seed(0)
    predicted, true, mask = (torch.rand(40, 9, generator=generator) < share for share in (0.2, 0.2, 0.8))
    metric = MisalignedWords(zero_division=zero)
    for rows in torch.arange(40).split(17):
        metric.update(predicted[rows], true[rows], mask[rows])

    def reference(rows: torch.Tensor, zero_division: int) -> list[float]:
        y, found = true[rows][mask[rows]], predicted[rows][mask[rows]]
        return precision_recall_fscore_support(
            y.numpy(), found.numpy(), average="binary", zero_division=zero_division  # pyright: ignore
        )[:3]  # fmt: skip

    assert values(metric) == pytest.approx(reference(torch.arange(40), 0), abs=1e-6)
    each = torch.tensor([reference(torch.tensor([row]), zero) for row in range(40)])
    assert values(metric, "_per_sample") == pytest.approx(each.mean(dim=0).tolist(), abs=1e-6)


def test_padding_changes_nothing():
    predicted, true = flags("101", "001"), flags("100", "011")
    short, long = MisalignedWords(), MisalignedWords()
    short.update(predicted, true, torch.ones_like(true))
    pad = torch.ones(2, 4, dtype=torch.bool)
    long.update(torch.cat([predicted, pad], 1), torch.cat([true, pad], 1), torch.cat([torch.ones_like(true), ~pad], 1))
    assert short.compute() == long.compute()


def test_it_takes_flags_only():
    true = flags("10")
    for predicted in (true.float(), true.int(), flags("101"), true[0]):
        with pytest.raises(ValueError, match=r"predicted words .*bool \(batch, words\) is needed"):
            word_counts(predicted, true, true)
