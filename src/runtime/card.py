"""Model cards: the README.md of a checkpoint folder."""

import re
from collections.abc import Mapping
from pathlib import PurePath

from huggingface_hub import ModelCardData

from src.runtime.system import System

# Texts that a card needs.
ABOUT: tuple[str, ...] = ("title", "what", "use", "limits", "data", "command", "time", "machine", "licence")
LOAD = """from src.runtime.checkpoint import load

system = load("path/of/this/folder")  # in eval mode; every weight must fit"""


def without_folders(word: str) -> str:
    """A word of a command in which absolute paths, which are those of one machine, are replaced by their last names."""
    key, equals, value = word.rpartition("=")
    if value.startswith(("/", "~")):
        return f"{key}{equals}{PurePath(value).name}"
    return re.sub(r"(?<![\w.:/~])~?/(?:[^\s,'\"\[\]{}]*/)?", "", word)


def card(system: System, metrics: Mapping[str, float | None], about: Mapping[str, str], dtype: str) -> str:
    """The model card in Markdown, with the metadata block of the Hugging Face hub; `about` has the texts of `ABOUT`."""
    parameters = sum(parameter.numel() for parameter in system.net.parameters())
    rows = [f"| {name} | {'-' if value is None else format(value, '.4g')} |" for name, value in metrics.items()]
    what = f"{parameters:,} parameters, stored as {dtype}; `{type(system).__module__}.{type(system).__qualname__}`."
    sections = {
        "Intended use": about["use"],
        "Limits": about["limits"],
        "Data": about["data"],
        "Training": f"```\n{about['command']}\n```\n\nTime: {about['time']}. Machine: {about['machine']}.",
        "Metrics": "\n".join(["| metric | value |", "|---|---|", *(rows or ["| none measured | |"])]),
        "How to load": f"```python\n{about.get('load', LOAD)}\n```",
        "Licence": about["licence"],
    }
    parts = [about["what"], what, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    data = ModelCardData(license=about["licence"].partition(":")[0].lower(), library_name="pytorch")
    return "\n\n".join([f"---\n{data}\n---\n# {about['title']}", *parts]) + "\n"
