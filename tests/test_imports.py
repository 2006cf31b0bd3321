"""Imports run one way (DESIGN section 3): commands -> models -> rewards, diffusion, language -> data -> runtime."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"config", "build", "runtime"}
MIDDLE = {"rewards", "diffusion", "language"}
# What the files of a folder of src may import of src, besides their own folder.
ALLOWED = {
    "metrics": set(),
    "figures": set(),
    "runtime": BASE,
    "data": BASE,
    "rewards": BASE | {"data", "metrics"},
    "diffusion": BASE | {"data", "metrics", "rewards.base"},
    "language": BASE | {"data", "metrics"},
    "models": BASE | MIDDLE | {"data", "metrics", "figures"},
}
FILES = {"config": set(), "build": {"config"}}  # the files of src itself that are no commands
# The packages of models whose code another package of models builds on; layers, augmentation, ... are for all.
PACKAGES = {"hps": {"clip"}, "rfft": {"generator"}, "rfnet": {"perception"}}


def imported(file: Path) -> set[str]:
    """The modules and names of src that a file imports, as in "models.layers.resize"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("src.") for name in names if name.startswith("src.")}


def below(name: str, modules: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def forbidden(file: Path) -> list[str]:
    """The imports of a file of src that run against the direction."""
    folder, *rest = file.relative_to(ROOT / "src").with_suffix("").parts
    names = imported(file)
    if folder == "models":
        shared = {f"models.{path.stem}" for path in (ROOT / "src/models").glob("*.py")}
        own = {f"models.{package}" for package in {rest[0], *PACKAGES.get(rest[0], ())}}
        allowed = ALLOWED["models"] | (own if len(rest) > 1 else set()) | shared
    elif rest:
        allowed = ALLOWED[folder] | {folder}
    elif folder in FILES:
        allowed = FILES[folder]
    else:
        commands = {path.stem for path in (ROOT / "src").glob("*.py")} - FILES.keys()
        allowed = {name.partition(".")[0] for name in names} - commands
    return sorted(name for name in names if not below(name, allowed))


SOURCES = sorted(path for path in (ROOT / "src").rglob("*.py") if path.stat().st_size)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file: Path):
    assert not forbidden(file)


def test_every_folder_has_its_place():
    folders = {path.parent.name for path in (ROOT / "src").glob("*/__init__.py")}
    assert folders <= ALLOWED.keys()
    for package, others in PACKAGES.items():
        assert {package, *others} <= {path.parent.name for path in (ROOT / "src/models").glob("*/__init__.py")}
