"""The documentation: its tables are those measured, its commands compose, its links lead somewhere."""

import json
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import report
from src.config import CONF, compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
PAGES += [ROOT / "benchmarks/README.md", *(ROOT / "checkpoints").rglob("README.md")]
COMMAND = "python -m "


def code(text: str) -> Iterator[str]:
    """Code blocks and code spans of a Markdown page."""
    return (part for number, part in enumerate(text.replace("```", "`").split("`")) if number % 2)


def commands() -> list[str]:
    """Every `python -m ...` in the code of the pages; a continued one on one line, without its comment."""
    found = set()
    for page in PAGES:
        for part in code(page.read_text(encoding="utf-8")):
            lines = [line.strip() for line in part.replace("\\\n", " ").splitlines()]
            found |= {shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(COMMAND)}
    return sorted(found)


def links() -> list[tuple[Path, str]]:
    """Page and target of every inline link."""
    parts = [(page, part) for page in PAGES for part in page.read_text(encoding="utf-8").split("](")[1:]]
    return [(page, part.partition(")")[0]) for page, part in parts]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them of plain words."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return {line.lstrip("#").strip().lower().replace(" ", "-") for line in lines if line.startswith("#")}


def test_the_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    assert report.main() == 0, capsys.readouterr().out


def test_a_stale_table_is_found_and_an_unknown_one_refused() -> None:
    page, known = (ROOT / "README.md").read_text(encoding="utf-8"), report.tables()
    assert report.filled(page, known) == page
    assert report.filled(page.replace("0.820", "0.821"), known) == page
    with pytest.raises(ValueError, match="zooo: unknown"):
        report.filled(page.replace("report: zoo", "report: zooo"), known)
    with pytest.raises(ValueError, match="<!-- end --> is missing"):
        report.filled("<!-- report: zoo -->\n", known)


def test_a_table_has_the_numbers_of_the_results() -> None:
    demo = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    ways = json.loads((ROOT / "benchmarks/results/regularizers.json").read_text(encoding="utf-8"))["ways"]
    known = report.tables()
    names = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity")
    assert known["demo"].endswith(" | ".join(f"{demo[f'test/{name}']:.3f}" for name in names) + " |")
    found = ways["kl"]["availability"]
    assert f"| {found['mean']:.3f} ± {found['sd']:.3f} |" in known["regularizers"]
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in known.values())


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_composes(command: str) -> None:
    module, *words = shlex.split(command.removeprefix(COMMAND))
    entry = module.removeprefix("src.")
    assert find_spec(module.partition(".")[0] if module == "pytest" else module)
    if (CONF / f"{entry}.yaml").is_file() and words and "--help" not in words:
        compose(entry, [word for word in words if word != "COMMAND" and not word.endswith("=NAME")])


def test_the_sample_commands_use_the_folder_that_the_demo_writes() -> None:
    out = compose("fit", ["experiment=demo"]).out
    assert f"generator.folder={out}/checkpoint" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs() -> None:
    blocks = [part.removeprefix("python\n") for part in code((ROOT / "README.md").read_text(encoding="utf-8"))]
    (example,) = [part for part in blocks if part.startswith("import torch")]
    names: dict = {}
    exec(example, names)
    assert names["images"].grad.abs().sum() > 0


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda value: str(value).rpartition("/")[2])
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    if target.startswith("https://"):
        return
    place, _, anchor = target.partition("#")
    file = (page.parent / place).resolve() if place else page
    assert file.exists()
    assert not anchor or anchor in anchors(file)


def named_tests() -> list[str]:
    return sorted(
        {
            part
            for page in PAGES
            for part in code(page.read_text(encoding="utf-8"))
            if part.startswith("tests/") and "<" not in part
        }
    )


@pytest.mark.parametrize("name", named_tests())
def test_a_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert (ROOT / file).exists()
    assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
