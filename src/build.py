"""Builds objects from configuration nodes: calls `_target_` with the other keys of the node."""

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from omegaconf import DictConfig, ListConfig

from src.config import ConfigError, nearest, plain

Target = TypeVar("Target", bound=Callable[..., Any])
PLAIN = (bool, int, float, str, NoneType)


def build(node: Any, /, **extra: Any) -> Any:
    """Calls `_target_` of `node` with its other keys, which are built first, and with `extra`.

    A node without `_target_` becomes a plain dict, list or value with resolved interpolations.
    Raises ConfigError for a target that is not defined under `src.`, and for invalid arguments.
    """
    node = plain(node) if isinstance(node, (DictConfig, ListConfig)) else node
    if isinstance(node, (list, tuple)):
        return type(node)([build(item) for item in node])
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value) for key, value in node.items() if key != "_target_" and key not in extra} | extra
    if "_target_" not in node:
        return arguments
    target = _target(str(node["_target_"]))
    signature = inspect.signature(target)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{node['_target_']}: {error}; its arguments: {', '.join(signature.parameters)}") from None
    for name, value in arguments.items():
        kinds = _kinds(signature.parameters[name].annotation) if name in signature.parameters else ()
        if kinds and not any(type(value) is kind or (kind is float and type(value) is int) for kind in kinds):
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ConfigError(f"{node['_target_']}: {name}={json.dumps(value, default=str)} must be {names}.")
    return target(**arguments)


def targets(node: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every `_target_` in a plain node, including nested ones: its name and the object; nothing is called."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"]), _target(str(node["_target_"]))
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)


def loadable(target: Target) -> Target:
    """Marks a function, or a class and its subclasses, as allowed in the configuration of a checkpoint."""
    target.loadable = True  # pyright: ignore[reportAttributeAccessIssue]
    return target


def node(settings: Any) -> dict[str, Any]:
    """The configuration that builds an object of a dataclass."""
    return {"_target_": f"{type(settings).__module__}.{type(settings).__name__}", **asdict(settings)}


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The types of an annotation if all of them are plain, otherwise none."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return kinds if all(kind in PLAIN for kind in kinds) else ()


def _target(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module.startswith("src."):
        raise ConfigError(f"_target_ {path!r} is not under src.")
    try:
        found = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or module):
            raise  # the module exists, but something that it imports does not
        raise ConfigError(f"_target_ {path!r}: there is no module {error.name}") from None
    own = {key: value for key, value in found.items() if str(getattr(value, "__module__", "")).startswith("src.")}
    if not callable(own.get(name)):
        raise ConfigError(f"_target_ {path!r}: {module} defines no {name!r}; {nearest(name, own)}")
    return own[name]
