"""The tiny text encoder's folder, from the showroom's own words: `python -m src.data.showroom.tokenizer`.

Writes `src/data/showroom/text/`: a WordPiece tokenizer and the configuration of a two-layer BERT, no weights. Whole
numbers up to 400 are words of their own ("49x61x118 cm" reads 49 x 61 x 118 cm); other unknown words fall apart into
characters.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from src.data.showroom.rooms import COLOURS
from src.data.showroom.text import BRANDS, PRAISE

HERE = Path(__file__).parent
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = "!\"#$%&'()*+,-./:;=?"
LARGEST = 400
MAX_TOKENS = 48


def texts() -> list[str]:
    """Everything that a showroom title can say."""
    with (HERE / "catalogue.csv").open(encoding="utf-8") as file:
        items = [f"{row['material']} {row['name']}" for row in csv.DictReader(file)]
    return [*items, *BRANDS, *PRAISE, *COLOURS, "Giant Mini for the floor for the table 1x1x1 cm"]


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Token to number: special ones, characters at the start and inside of words, marks, whole numbers, and the
    texts' words.
    """
    words = {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}
    numbers = [str(number) for number in range(LARGEST + 1)]
    inner = [f"##{symbol}" for symbol in SYMBOLS]
    return {
        token: row
        for row, token in enumerate(dict.fromkeys([*SPECIAL, *SYMBOLS, *inner, *MARKS, *numbers, *sorted(words)]))
    }


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Lower case, accents off, cut at spaces, marks and between letters and digits, then WordPiece; [CLS] ... [SEP]."""
    vocab = vocabulary(texts)
    fast = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix="##"))  # pyright: ignore
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    fast.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=False)]
    )
    fast.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    fast.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def main(folder: Path = HERE / "text") -> None:
    words = tokenizer(texts())
    words.save_pretrained(folder)
    BertConfig(
        vocab_size=-(-len(words) // 8) * 8,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        type_vocab_size=1,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    ).save_pretrained(folder)
    print(f"wrote {folder}: {len(words)} tokens")


if __name__ == "__main__":
    main()
