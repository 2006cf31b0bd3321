"""The tiny text encoders' folders, from the showroom's own words: `python -m src.data.showroom.tokenizer`.

Writes tokenizers and configurations, no weights. `src/data/showroom/text/`, for titles: WordPiece and a two-layer BERT;
whole numbers up to 400 are words of their own ("49x61x118 cm" reads 49 x 61 x 118 cm), other unknown words fall apart
into characters. `src/data/showroom/prompt/`, for prompts: CLIP's byte pairs, merged until every word of the showroom is
one token, and a two-layer CLIP text model. `src/data/showroom/t5/`, for prompts with marked words: WordPiece and
a small T5. `src/data/showroom/clip/`, for prompts and images: WordPiece and a small CLIP in the layout of open_clip.
"""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerFast, T5Config

from src.data.batch import HEAT_MAPS, SCORES
from src.data.showroom.rooms import COLOURS, MATERIALS, STYLES
from src.data.showroom.text import BRANDS, NOUNS, PATTERN_WORDS, PRAISE, VERSION_WORDS

HERE = Path(__file__).parent
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = "!\"#$%&'()*+,-./:;=?"
LARGEST = 400
MAX_TOKENS = 48  # of a title
PROMPT_TOKENS = 40
CLIP_TOKENS = 48


def texts() -> list[str]:
    """Everything that a showroom title can say."""
    with (HERE / "catalogue.csv").open(encoding="utf-8") as file:
        items = [f"{row['material']} {row['name']}" for row in csv.DictReader(file)]
    versions = [word for words in VERSION_WORDS.values() for word in words]
    return [*items, *versions, *BRANDS, *PRAISE, *COLOURS, "Large Small for the floor for the table 1x1x1 cm"]


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


def prompts() -> list[str]:
    """Everything that a showroom prompt can say."""
    with (HERE / "catalogue.csv").open(encoding="utf-8") as file:
        items = [row["name"] for row in csv.DictReader(file)]
    frame = "product photo of a in a room wall warm soft light cool daylight next to a , white background"
    return [*items, *VERSION_WORDS, *COLOURS, *MATERIALS, *STYLES, *PATTERN_WORDS.values(), *NOUNS.values(), frame]


def prompt_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with merges of its own, learnt from `texts`; other words fall apart into smaller pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    bytes_only = CLIPTokenizer(
        vocab={token: row for row, token in enumerate(tokens)}, merges=[], model_max_length=PROMPT_TOKENS
    )
    return bytes_only.train_new_from_iterator(texts, vocab_size=5000, show_progress=False)


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """WordPiece of lower-case words, which `_0` may follow; T5's special tokens, </s> at the end."""
    special = ["<pad>", "</s>", "<unk>"]
    words = sorted({word for text in texts for word in re.findall(r"[^\W_]+", text.lower())})
    pieces = [*SYMBOLS, *(f"##{symbol}" for symbol in f"{SYMBOLS}_"), *MARKS, *(f"##{mark}" for mark in MARKS), *words]
    vocab = {token: row for row, token in enumerate(dict.fromkeys([*special, *pieces]))}
    fast = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", continuing_subword_prefix="##"))  # pyright: ignore
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast.decoder = decoders.WordPiece(cleanup=False)  # pyright: ignore[reportAttributeAccessIssue]
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def clip_config(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A CLIP of 2 million parameters: a ResNet with attention pooling, and a transformer over the words of a prompt."""
    vision = {"layers": [1, 2, 2, 1], "width": 16, "head_width": 64, "image_size": 128}
    text = {
        "context_length": CLIP_TOKENS,
        "vocab_size": -(-len(words) // 8) * 8,
        "hf_tokenizer_name": "showroom",  # any name: that of the folder itself is read
        "width": 128,
        "heads": 4,
        "layers": 3,
        "pool_type": "eos",
        "eos_id": words.eos_token_id,
        "pad_id": words.pad_token_id,
    }
    return {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "shortest"},
    }


def main(folder: Path = HERE) -> None:
    """Writes folder/text, prompt, t5 and clip."""
    text_folder, prompt_folder, t5_folder, clip_folder = (folder / name for name in ("text", "prompt", "t5", "clip"))
    words = tokenizer(texts())
    words.save_pretrained(text_folder)
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
    ).save_pretrained(text_folder)
    print(f"wrote {text_folder}: {len(words)} tokens")
    pairs: Any = prompt_tokenizer(prompts())
    pairs.save_pretrained(prompt_folder)
    CLIPTextConfig(
        vocab_size=-(-len(pairs) // 8) * 8,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=pairs.bos_token_id,
        eos_token_id=pairs.eos_token_id,
        pad_token_id=pairs.pad_token_id,
    ).save_pretrained(prompt_folder)
    print(f"wrote {prompt_folder}: {len(pairs)} tokens")
    marked: Any = word_tokenizer([*prompts(), *HEAT_MAPS, *SCORES, "heatmap score"])
    marked.save_pretrained(t5_folder)
    T5Config(
        vocab_size=-(-len(marked) // 8) * 8,
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        decoder_start_token_id=marked.pad_token_id,  # pyright: ignore[reportCallIssue]
        pad_token_id=marked.pad_token_id,
        eos_token_id=marked.eos_token_id,
    ).save_pretrained(t5_folder)
    print(f"wrote {t5_folder}: {len(marked)} tokens")
    plain = word_tokenizer(prompts())
    plain.save_pretrained(clip_folder)
    (clip_folder / "open_clip_config.json").write_text(
        json.dumps(clip_config(plain), indent=2) + "\n", encoding="utf-8"
    )
    print(f"wrote {clip_folder}: {len(plain)} tokens")


if __name__ == "__main__":
    main()
