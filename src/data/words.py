"""Prompts cut into words as in RichHF-18K, which has a label for each word (arXiv 2312.10240)."""

import re

SEPARATORS = re.compile(r'[,.?!":; ]+')  # hyphens, apostrophes and brackets do not cut


def split_words(prompt: str) -> list[str]:
    """The words of a prompt, without separators and empty words."""
    return [word for word in SEPARATORS.split(prompt) if word]
