"""The command line: YAML files under `conf/` and `key=value` words compose one closed configuration.

- An entry (`conf/fit.yaml`) selects a file for each of its groups under `defaults:`. The content of the selected file,
  `conf/model/rfnet.yaml`, is stored under the key `model`. `null` omits a group, `???` makes it required; a word
  may omit only a group that the entry omits, or that another group brings.
- A group file may have its own `defaults:`, for groups after it in the entry's order and for new groups (under the name
  of its own group: the file it extends); and `overrides:`, merged at the root: `{trainer: {max_steps: 900}}`.
- A word whose key only ends in the name of a folder of `conf/` selects a file for that place: `guidance.reward=rahf`
  stores the content of `conf/reward/rahf.yaml` under `guidance.reward`, before values below it are set.
- `experiment=x` merges `conf/experiment/x.yaml` at the root; its `defaults:` select files.
- Precedence: command line > experiment > group file > entry; among group files, the first in the entry's order.
- Only existing keys can be set, except below keys that are `{}` or `null`. Mappings are merged, but an empty mapping or
  one with another `_target_` replaces the old one; lists are replaced.
- `${choices.model}` is the name of the selected file; `choices.experiment` exists if an experiment is selected.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CONF = Path(__file__).parent.parent / "conf"
# Keys whose values are paths or texts.
TEXTS = (
    "out", "table", "folder", "products", "prompts", "checkpoint", "root", "cache", "maps", "scores", "init",
    "quarantine", "titles", "depth", "saliency", "negative_prompt", "identifier", "regularization",
)  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be composed or built; the message is one line."""


def compose(entry: str, words: list[str], root: Path = CONF) -> DictConfig:
    """The closed configuration of `<entry>.yaml` and `words`, without missing values.

    Raises ConfigError naming the most similar keys or choices for an unknown one, or the missing values.
    """
    config = _compose(entry, words, root)
    with _one_line_errors():
        missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"needs {' '.join(f'{key}=...' for key in missing)}")
    for name, value in _keys(plain(config)).items():
        if name.endswith("_target_") and not str(value).startswith("src."):
            raise ConfigError(f"{name}={value} is not under src.")
    OmegaConf.set_struct(config, True)
    return config


def describe(entry: str, words: list[str], root: Path = CONF) -> str:
    """The help text: usage, groups and their choices (a star marks the selected ones), keys and values."""
    config: Any = OmegaConf.to_container(_compose(entry, words, root))
    choices = {"experiment": None} | config.pop("choices")
    lines = [f"usage: python -m src.{entry} [group=choice ...] [key=value ...]", "", _comment(root / f"{entry}.yaml")]
    for group, chosen in choices.items():
        lines += ["", f"{group}="]
        for name in _choices(root, group) if group != "experiment" else _experiments(entry, words, root):
            mark, about = "*" if name == chosen else " ", _comment(root / group / f"{name}.yaml")
            lines.append(f"  {mark} {name:<16} {about}".rstrip())
    leaves = {key: value for key, value in _keys(config).items() if not (value and isinstance(value, dict))}
    return "\n".join([*lines, "", "keys:", *(f"  {key}={_show(value)}" for key, value in leaves.items())])


def _experiments(entry: str, words: list[str], root: Path) -> Iterator[str]:
    """The experiments that can be combined with the entry and the words."""
    for name in _choices(root, "experiment"):
        with suppress(ConfigError):
            _compose(entry, [*words, f"experiment={name}"], root)
            yield name


class _File(NamedTuple):
    name: str | None
    defaults: dict[str, str | None]
    overrides: dict[str, Any]
    body: Any


def _compose(entry: str, words: list[str], root: Path) -> DictConfig:
    """The configuration, possibly with missing values."""
    if not root.is_dir():
        raise ConfigError(f"the folder {root} is missing; install the project with `pip install -e .`")
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    picks: dict[str, str | None] = {}
    nodes: list[tuple[str, Any]] = []
    values: list[tuple[str, str]] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            options = [f"{group}={name}" for group in folders for name in _choices(root, group)]
            options += [f"{name}=" for name in _keys(_read(root, "", entry).body)]
            raise ConfigError(f"{word!r} is not key=value; {nearest(word, options)}")
        if key in folders:
            picks[key] = None if text in ("", "null") else text
            continue
        group = key.rpartition(".")[2]
        name = _parse(word, text) if group in folders else None
        if isinstance(name, str) and "${" not in name:
            nodes.append((word, _node(root, group, name)))
        else:
            values.append((word, text))

    base = _read(root, "", entry)
    experiment = _read(root, "experiment", picks.pop("experiment", None))
    picks = experiment.defaults | picks
    for group in (group for group, name in base.defaults.items() if name is not None):
        if picks.get(group, "") is None:
            raise ConfigError(f"{group}=null: choose a {group}; {nearest(None, _choices(root, group))}")
    brought, files = {}, {}
    while group := next((name for name in base.defaults | brought if name not in files), None):
        files[group] = _read(root, group, (base.defaults | brought | picks)[group])
        brought = files[group].defaults | brought
    for group in picks.keys() - files:
        brings = [f"{g}={name}" for g in files for name in _choices(root, g) if group in _read(root, g, name).defaults]
        how = f"it belongs to {' or '.join(brings)}" if brings else nearest(group, files)
        raise ConfigError(f"{group}={picks[group]}: no group {group!r} here; {how}")

    config = base.body | {group: file.body for group, file in files.items()}
    free = _free(config) - files.keys()
    for group, file in reversed([*files.items(), ("", base)]):
        _merge(config, file.overrides, free, f"{group}/{file.name}.yaml, overrides")
    _merge(config, experiment.overrides | (experiment.body or {}), free, f"experiment/{experiment.name}.yaml")
    for word, node in nodes:
        _set(config, word, node, free)
    for word, text in values:
        _set(config, word, _parse(word, text, _old(config, word)), free)
    config["choices"] = {group: file.name for group, file in files.items()}
    if experiment.name:
        config["choices"]["experiment"] = experiment.name
    return OmegaConf.create(config)


def _read(root: Path, group: str, name: str | None) -> _File:
    """A file merged into the one it extends."""
    if name is None or name == "???":
        return _File(None, {}, {}, name)
    if name not in _choices(root, group):
        raise ConfigError(f"{group}={name}: no such choice; {nearest(name, _choices(root, group))}")
    path = root / group / f"{name}.yaml"
    with _one_line_errors(str(path)):
        body: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: the file must be a mapping")
    file = _File(name, body.pop("defaults", None) or {}, body.pop("overrides", None) or {}, body)
    if not (isinstance(file.defaults, dict) and isinstance(file.overrides, dict)):
        raise ConfigError(f"{path}: defaults and overrides must be mappings")
    parent = _read(root, group, file.defaults.pop(group, None))
    for old, new in ((parent.overrides, file.overrides), (parent.body or {}, file.body)):
        _merge(old, new, None, str(path))
    return file if parent.name is None else parent._replace(name=name, defaults=parent.defaults | file.defaults)


def _node(root: Path, group: str, name: str) -> Any:
    """The content of a group file that is stored elsewhere than under its group."""
    file = _read(root, group, name)
    if file.defaults or file.overrides:
        raise ConfigError(f"{group}/{name}.yaml has defaults or overrides: it can only be selected by {group}={name}")
    return file.body


def _merge(base: dict[str, Any], values: dict[str, Any], free: set[str] | None, where: str, prefix: str = "") -> None:
    """Merges `values` into `base`. New keys are allowed below the names in `free` (None: everywhere)."""
    for key, new in values.items():
        name, old = f"{prefix}{key}", cast(Any, base.get(key))
        if free is not None and key not in base:
            raise ConfigError(f"{where}: no key {name!r}; {nearest(name, _keys(base, prefix))}")
        below = None if free is None or name in free else free
        if new and _alike(old, new):
            _merge(old, new, below, where, f"{name}.")
            continue
        if below is not None:
            if fault := _fault(old, new):
                raise ConfigError(f"{where}: {name!r} {fault}")
            below.update(_free({key: new}, prefix))
        base[key] = deepcopy(new)


def _set(config: dict[str, Any], word: str, value: Any, free: set[str]) -> None:
    """Merges the value of a word at its place."""
    for part in reversed(_parts(word)):
        value = {part: value}
    _merge(config, value, free, word)


def _old(config: Any, word: str) -> Any:
    """The value before a word sets it; None if there is none."""
    for part in _parts(word):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _parts(word: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in word.partition("=")[0].split(".")]


def _alike(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and new.get("_target_") in (None, old.get("_target_"))


def _fault(old: Any, new: Any) -> str:
    """The reason why `new` cannot replace `old`, if their types differ."""
    text = isinstance(new, str) and not new.startswith("${")
    if isinstance(old, dict) and not (new is None or isinstance(new, dict) or str(new).startswith("${")):
        return f"is a mapping; its keys: {', '.join(map(str, old))}"
    if isinstance(new, dict) and not isinstance(old, dict) and "_target_" not in new:
        return f"is {_show(old)} and has no keys"
    if isinstance(old, list) and not (new is None or isinstance(new, list) or str(new).startswith("${")):
        return f"takes a list, such as [{_show(new)}]"
    if isinstance(new, list) and isinstance(old, (bool, int, float, str)):
        return f"takes one value, not the list {_show(new)}"
    if text and isinstance(old, (bool, int, float)):
        return f"takes {'true or false' if isinstance(old, bool) else 'a number'}, not {new!r}"
    if type(old) is int and isinstance(new, float):
        return f"takes a whole number, not {new!r}"
    return ""


def _free(node: dict, prefix: str = "") -> set[str]:
    return {name for name, value in _keys(node, prefix).items() if value is None or value == {}}


def _parse(word: str, text: str, old: Any = None) -> Any:
    """The value of a word as YAML.

    These stay texts as they are: paths and texts (TEXTS), what replaces a text and would be a number, `a: b` without
    braces, and what YAML takes for a comment.
    """
    given = text not in ("", "null")
    if given and _parts(word)[-1] in TEXTS and (old is None or isinstance(old, str)):
        return text
    with _one_line_errors(word):
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore
    mapping = isinstance(value, dict) and not text.lstrip().startswith("{")
    number = isinstance(old, str) and not old.startswith("${") and isinstance(value, bool | int | float)
    cut = given and isinstance(value, str | None) and f" {text}".count(" #") and text[0] not in "'\""
    return text if mapping or number or cut else value


def _keys(node: dict, prefix: str = "") -> dict[str, Any]:
    """All dotted names below `node`, including inner nodes, and their values."""
    keys = {}
    for key, value in node.items():
        keys[f"{prefix}{key}"] = value
        keys |= _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
    return keys


def nearest(name: str | None, options: Iterable[str]) -> str:
    """The end of an error message: the `options` that are similar to `name`, or all of the same depth."""
    options, name = sorted(options), str(name)
    same = [option for option in options if option.endswith((f".{name}", f"={name}")) or option == f"{name}="]
    if near := same or difflib.get_close_matches(name, options, n=3):
        return f"nearest: {', '.join(near)}"
    return f"choices: {', '.join(o for o in options if o.count('.') == name.count('.')) or 'none'}"


def _choices(root: Path, group: str) -> list[str]:
    return sorted(path.stem for path in (root / group).glob("*.yaml"))


def _comment(path: Path) -> str:
    """The first line of a file, if it is a comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain(node: DictConfig | ListConfig) -> Any:
    """The node as dicts, lists and values, with resolved interpolations."""
    with _one_line_errors():
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


@contextmanager
def _one_line_errors(where: str = "") -> Iterator[None]:
    """Turns errors of OmegaConf and YAML into a ConfigError with one line."""
    try:
        yield
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}".removeprefix(": ")) from None
