"""The composition of configurations from small made trees, and a walk through the project's own `conf/`."""

import inspect
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any, cast

import lightning
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.build import build
from src.config import CONF, ConfigError, _compose, compose, describe

TREE = {
    "fit": """
        # Trains a model.
        defaults: {model: small, data: toys, trainer: plain, reward: null}
        seed: 0
        resume: false
        extra: null
        out: runs/${choices.model}
        """,
    "score": "{defaults: {reward: '???'}, table: '???', batch_size: 32}",
    "model/small": """
        # A small net.
        _target_: src._made.Net
        lr: 1e-3
        widths: [8, 16]
        kwargs: {}
        encoder: {_target_: src._made.Encoder, depth: 2}
        size: ${data.size}
        """,
    "model/tuner": """
        # Tunes with a reward.
        defaults: {data: rooms, reward: taste}
        overrides: {trainer: {max_steps: 900}, seed: 7}
        lr: 1e-5
        """,
    "model/large": "{defaults: {model: small}, overrides: {seed: 1}, lr: 2e-4, encoder: {depth: 9}}",
    "data/toys": "{size: 32, root: /toys}",
    "data/rooms": "{size: 64, styles: [a, b], overrides: {trainer: {max_steps: 5}, resume: true}}",
    "data/files": "{size: 16, root: '???'}",
    "trainer/plain": "{max_steps: -1, clip: 1.0, logger: null}",
    "reward/taste": "{weight: 2}",
    "reward/none": "{}",
    "experiment/paper": "{defaults: {data: rooms}, seed: 3, model: {lr: 0.5, kwargs: {heads: 4}}}",
    "experiment/long": "{defaults: {model: tuner}, trainer: {max_steps: 10000}}",
    "experiment/longer": "{defaults: {experiment: long}, trainer: {clip: 2.0}}",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, TREE)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(inspect.cleandoc(text))
    return root


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module under src. whose functions return what they were given."""
    module = types.ModuleType("src._made")
    code = """
    import os
    def Net(lr, widths=(), **others): return "net", lr, widths, others
    def Encoder(depth): return "encoder", depth
    def Broken(): return len(3)
    number = 3
    """
    exec(inspect.cleandoc(code), module.__dict__)
    monkeypatch.setitem(sys.modules, "src._made", module)
    return module


def refusal(root: Path, *words: str, entry: str = "fit") -> str:
    with pytest.raises(ConfigError) as caught:
        compose(entry, list(words), root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence: word > experiment > group file > entry, for choices and for values


def test_entry_defaults(root: Path) -> None:
    config = compose("fit", [], root)
    assert (config.model.lr, config.data.size, config.trainer.max_steps, config.seed) == (1e-3, 32, -1, 0)
    assert config.reward is None
    assert config.choices == {"model": "small", "data": "toys", "trainer": "plain", "reward": None}


def test_group_file_beats_entry(root: Path) -> None:
    config = compose("fit", ["model=tuner"], root)
    assert (config.choices.data, config.choices.reward) == ("rooms", "taste")
    assert (config.seed, config.reward.weight) == (7, 2)


def test_first_group_of_the_entry_beats_the_next(root: Path) -> None:
    config = compose("fit", ["model=tuner"], root)
    assert config.resume is True, "the data's own override"
    assert config.trainer.max_steps == 900, "the model's, not the data's"
    write(root, {"data/judged": "{defaults: {reward: none}, size: 8}"})
    assert compose("fit", ["data=judged"], root).choices.reward == "none"
    assert compose("fit", ["model=tuner", "data=judged"], root).choices.reward == "taste"


def test_experiment_beats_group_file(root: Path) -> None:
    config = compose("fit", ["experiment=long"], root)
    assert (config.choices.model, config.trainer.max_steps, config.seed) == ("tuner", 10000, 7)
    config = compose("fit", ["experiment=paper", "model=large"], root)
    assert (config.seed, config.model.lr, config.choices.experiment) == (3, 0.5, "paper")


def test_word_beats_experiment(root: Path) -> None:
    config = compose("fit", ["experiment=paper", "data=toys", "seed=5", "model.lr=0.1"], root)
    assert (config.choices.data, config.seed, config.model.lr, config.model.kwargs.heads) == ("toys", 5, 0.1, 4)


def test_word_beats_what_a_group_file_brings(root: Path) -> None:
    config = compose("fit", ["data=toys", "trainer.max_steps=2", "reward=null", "model=tuner"], root)
    assert (config.choices.data, config.trainer.max_steps, config.reward) == ("toys", 2, None)


def test_last_of_equal_words_counts(root: Path) -> None:
    assert compose("fit", ["seed=1", "seed=2", "seed=1", "model=tuner", "model=small"], root).seed == 1


def test_variant_of_another_file(root: Path) -> None:
    config = compose("fit", ["model=large"], root)
    assert (config.model.lr, config.model.encoder.depth, config.model.widths) == (2e-4, 9, [8, 16])
    assert (config.choices.model, config.seed) == ("large", 1)
    config = compose("fit", ["experiment=longer"], root)
    assert (config.choices.model, config.trainer.max_steps, config.trainer.clip) == ("tuner", 10000, 2.0)


def test_a_word_whose_key_ends_in_a_group_selects_a_file_for_that_place(root: Path) -> None:
    write(
        root,
        {"reward/net": "{_target_: src._made.Encoder, depth: 1}", "model/guided": "{guide: {reward: '${reward}'}}"},
    )
    words = ["model.guide.reward.depth=4", "model=guided", "model.guide.reward=net", "reward=taste"]
    config = compose("fit", words, root)
    assert config.model.guide.reward == {"_target_": "src._made.Encoder", "depth": 4}
    assert config.reward.weight == 2
    assert compose("fit", ["model=guided", "reward=taste"], root).model.guide.reward.weight == 2
    assert compose("fit", ["model=guided", "model.guide.reward=null"], root).model.guide.reward is None
    assert "reward=nett: no such choice; nearest: net" in refusal(root, "model=guided", "model.guide.reward=nett")
    assert "no key 'model.guide'" in refusal(root, "model.guide.reward=net")
    write(root, {"reward/net": "{_target_: src._made.Encoder, depth: 1, overrides: {seed: 1}}"})
    assert "it can only be selected by reward=net" in refusal(root, "model=guided", "model.guide.reward=net")


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("a=b", "a=b"),
        ("'1e-4'", "1e-4"),
        ("/x/y z.csv", "/x/y z.csv"),
    ],
)
def test_words_are_yaml(root: Path, text: str, value: object) -> None:
    config = compose("fit", [f"extra={text}"], root)
    assert config.extra == value
    assert type(OmegaConf.to_container(config)["extra"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize("text", ["2024", "001", "#1", "a: b", "[x]", "1e3", "null ", "x=y"])
def test_paths_are_texts(root: Path, text: str) -> None:
    config = compose("fit", [f"out={text}", "data=files", f"data.root={text}"], root)
    assert (config.out, config.data.root) == (text, text)
    assert compose("fit", [f"trainer.logger.titles={text}"], root).trainer.logger.titles == text
    assert compose("fit", ["out=null"], root).out is None


@pytest.mark.parametrize("text", ["2024", "001", "1e3", "true", "#1", "a #1", "text: logo"])
def test_what_replaces_a_text_is_a_text(root: Path, text: str) -> None:
    write(root, {"data/named": "{size: 16, name: null, colour: red, number: '${data.size}', depth: 3}"})
    config = compose("fit", ["data=named", f"data.colour={text}", "data.number=7", "data.depth=4"], root)
    assert config.data == {"size": 16, "name": None, "colour": text, "number": 7, "depth": 4}
    assert compose("fit", ["data=named", "data.colour='#1'"], root).data.colour == "#1"
    assert compose("fit", ["data=named", "data.colour="], root).data.colour is None
    assert "takes one value, not the list" in refusal(root, "data=named", "data.colour=[x]")


def test_a_colon_in_a_text_makes_no_mapping(root: Path) -> None:
    assert compose("fit", ["model.kwargs.prompt=text: logo"], root).model.kwargs.prompt == "text: logo"


@settings(max_examples=25, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    root = tmp_path_factory.getbasetemp() / "floats"
    if not root.exists():
        write(root, TREE)
    config = compose("fit", [f"model.lr={value!r}"], root)
    assert isinstance(config.model.lr, float)
    assert config.model.lr == value


def test_exponent_without_point_in_a_file_is_a_number(root: Path) -> None:
    assert isinstance(compose("fit", ["model=tuner"], root).model.lr, float)


def test_switching_a_group_replaces_its_node(root: Path) -> None:
    assert compose("fit", ["data=rooms"], root).data == {"size": 64, "styles": ["a", "b"]}


def test_interpolation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/env")
    config = compose("fit", ["data=rooms", "extra=${out}/x", "data.styles=['${oc.env:PLACE}']"], root)
    assert (config.model.size, config.out, config.extra, config.data.styles) == (
        64,
        "runs/small",
        "runs/small/x",
        ["/env"],
    )
    assert build(config.model.size) == 64
    assert "nope" in refusal(root, "extra=${nope}")
    assert "NOT_SET" in refusal(root, "extra=${oc.env:NOT_SET}")


def test_lists_replace_lists_and_free_mappings_grow(root: Path) -> None:
    config = compose(
        "fit", ["model.widths=[4]", "model.kwargs.a=1", "model.kwargs.b.c=2", "trainer.logger.name=x"], root
    )
    assert config.model.widths == [4]
    assert config.model.kwargs == {"a": 1, "b": {"c": 2}}
    assert config.trainer.logger == {"name": "x"}
    assert compose("fit", ["extra={2: a}", "extra.2=b"], root).extra == {2: "b"}
    assert compose("fit", ["experiment=paper", "model.kwargs.a=1"], root).model.kwargs == {"heads": 4, "a": 1}


def test_another_target_replaces_the_node_and_the_same_merges(root: Path) -> None:
    other = compose("fit", ["model.encoder={_target_: src._made.Other, width: 3}", "model.encoder.width=4"], root)
    assert other.model.encoder == {"_target_": "src._made.Other", "width": 4}
    same = compose("fit", ["model.encoder={_target_: src._made.Encoder, depth: 3}"], root)
    assert same.model.encoder == {"_target_": "src._made.Encoder", "depth": 3}
    assert compose("fit", ["model.encoder={}"], root).model.encoder == {}
    assert compose("fit", ["model.encoder=null"], root).model.encoder is None


def test_compositions_do_not_share_state(root: Path) -> None:
    compose("fit", ["model.kwargs.a=1", "model.widths=[1]"], root)
    assert compose("fit", [], root).model.kwargs == {}


# Refusals


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["modle=small"], ["'modle'", "nearest: model"]),
        (["model=smal"], ["model=smal", "nearest: small"]),
        (["model=nope"], ["model=nope", "choices: large, small, tuner"]),
        (["experiment=papr"], ["nearest: paper"]),
        (["model=../data/toys"], ["no such choice"]),
        (["model.lrr=1"], ["'model.lrr'", "nearest: model.lr"]),
        (["lr=1"], ["'lr'", "nearest: model.lr"]),
        (["xyzzy=1"], ["'xyzzy'", "choices: data, extra, model, out, resume, reward, seed, trainer"]),
        (["--seed=1"], ["'--seed'", "nearest: seed"]),
        (["small"], ["'small' is not key=value", "nearest: model=small"]),
        (["model"], ["'model' is not key=value"]),
        (["=3"], ["is not key=value"]),
        (["seed=1", ""], ["is not key=value"]),
        (["extra=[1,"], ["extra=[1,"]),
        (["extra=${"], ["extra=${"]),
        (["model.lr.x=1"], ["'model.lr' is 0.001 and has no keys"]),
        (["reward.weight=1"], ["'reward' is null and has no keys"]),
        (["model.encoder=3"], ["'model.encoder' is a mapping", "depth"]),
        (["model.encoder=[3]"], ["'model.encoder' is a mapping"]),
        (["data=null"], ["data=null: choose a data; choices: files, rooms, toys"]),
        (["resume=ture"], ["'resume' takes true or false, not 'ture'"]),
        (["seed=l0"], ["'seed' takes a number, not 'l0'"]),
        (["choices.model=small"], ["no key 'choices'"]),
        (["model.encoder._target_=os.system"], ["model.encoder._target_=os.system is not under src."]),
        (["data=files"], ["needs data.root=..."]),
        (["data=rooms", "data.root=/x"], ["no key 'data.root'"]),
        (["experiment=paper", "model=tuner"], ["experiment/paper.yaml", "no key 'model.kwargs'"]),
    ],
)
def test_refusals_name_the_choices(root: Path, words: list[str], parts: list[str]) -> None:
    message = refusal(root, *words)
    assert all(part in message for part in parts), message


def test_an_installation_without_the_configurations_is_told(root: Path) -> None:
    assert "conf is missing; install the project with `pip install -e .`" in refusal(root / "conf")


def test_required_group_and_value(root: Path) -> None:
    assert refusal(root, entry="score") == "needs reward=... table=..."
    assert compose("score", ["reward=taste", "table=x.csv"], root).reward.weight == 2


def test_a_group_that_only_some_choices_bring_is_told_with_them() -> None:
    with pytest.raises(ConfigError, match="no group 'regularizer' here; it belongs to model=rfft"):
        compose("fit", ["regularizer=cc"])


def test_group_that_the_entry_does_not_take(root: Path) -> None:
    assert "no group 'model' here; choices: reward" in refusal(root, "model=small", entry="score")
    assert compose("score", ["reward=none", "table=x"], root).reward == {}
    assert "no key 'reward.weight'" in refusal(root, "reward=none", "table=x", "reward.weight=1", entry="score")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("model/bad", "{overrides: {trainer: {max_step: 1}}}", "model/bad.yaml, overrides: no key 'trainer.max_step'"),
        ("model/bad", "{defaults: {data: toyz}}", "nearest: toys"),
        ("model/bad", "{defaults: [data]}", "bad.yaml: defaults and overrides must be mappings"),
        ("model/bad", "[1, 2]", "the file must be a mapping"),
        ("model/bad", "a: 1\na: 2", "bad.yaml"),
        ("model/bad", "a: [1", "bad.yaml"),
        ("experiment/bad", "{sede: 1}", "experiment/bad.yaml: no key 'sede'; nearest: seed"),
    ],
)
def test_faulty_files_are_named(root: Path, name: str, text: str, part: str) -> None:
    write(root, {name: text})
    group, _, choice = name.partition("/")
    assert part in refusal(root, f"{group}={choice}")


def test_the_result_is_closed(root: Path) -> None:
    config = compose("fit", [], root)
    with pytest.raises(OmegaConfBaseException, match="lrr"):
        config.model.lrr = 1
    with pytest.raises(OmegaConfBaseException, match="sede"):
        _ = config.sede


# The command line


def test_help(root: Path) -> None:
    lines = describe("fit", ["data=files", "seed=9"], root).splitlines()
    assert lines[0].startswith("usage: python -m src.fit ")
    assert "Trains a model." in lines
    assert "  * small            A small net." in lines
    assert "    tuner            Tunes with a reward." in lines
    assert "  * files" in lines
    assert "    paper" in lines
    for key in (
        "seed=9",
        "data.root=???",
        "model.lr=0.001",
        "model.kwargs={}",
        "extra=null",
        "out=runs/${choices.model}",
    ):
        assert f"  {key}" in lines


# Building


def test_help_lists_the_experiments_that_fit_the_entry(root: Path) -> None:
    write(root, {"experiment/heavy": "{reward: {weight: 9}}", "experiment/pick": "{defaults: {model: large}}"})

    def listed(entry: str, *words: str) -> list[str]:
        lines = describe(entry, list(words), root).splitlines()
        return [name for name in ("heavy", "paper", "pick") if f"    {name}" in lines]

    assert listed("score") == []
    assert listed("score", "reward=taste") == ["heavy"]
    assert listed("fit") == ["paper", "pick"]
    assert listed("fit", "model=tuner") == ["heavy", "pick"]
    assert "'reward' is ??? and has no keys" in refusal(root, "experiment=heavy", "table=x", entry="score")
    assert "no group 'model' here" in refusal(root, "experiment=pick", "reward=taste", "table=x", entry="score")


def test_build_is_recursive_and_plain(root: Path, made: types.ModuleType) -> None:
    config = compose("fit", ["model.kwargs={a: [1, {b: 2}]}"], root)
    kind, lr, widths, others = build(config.model)
    assert (kind, lr, widths) == ("net", 1e-3, [8, 16])
    assert others == {"kwargs": {"a": [1, {"b": 2}]}, "encoder": ("encoder", 2), "size": 32}
    assert type(widths) is list
    assert type(others["kwargs"]) is dict
    assert type(others["kwargs"]["a"][1]) is dict


def test_build_of_lists_tuples_values_and_null(made: types.ModuleType) -> None:
    node = {"_target_": "src._made.Encoder", "depth": 1}
    assert build([node, 3, (node, None)]) == [("encoder", 1), 3, (("encoder", 1), None)]
    assert build(OmegaConf.create([node, {"a": 1}])) == [("encoder", 1), {"a": 1}]
    assert build({"parts": {"x": node}}) == {"parts": {"x": ("encoder", 1)}}
    assert build(None) is None


def test_extra_arguments_win(made: types.ModuleType) -> None:
    assert build({"_target_": "src._made.Encoder", "depth": 1}, depth=5) == ("encoder", 5)
    assert build({"_target_": "src._made.Net", "lr": 1}, node="n") == ("net", 1, (), {"node": "n"})


def test_build_leaves_its_node_alone(made: types.ModuleType) -> None:
    node = DictConfig({"_target_": "src._made.Net", "lr": 1, "widths": [1]})
    build(node)[2].append(2)
    assert node == {"_target_": "src._made.Net", "lr": 1, "widths": [1]}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "src",
        "srcs.x.y",
        "src..os.system",
        "src._made.os",
        "src._made.os.system",
        "src._made.number",
    ],
)
def test_targets_outside_src_are_refused(target: object, made: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        build({"a": [{"_target_": target, "command": "true"}]})


def test_unknown_targets_name_the_nearest(made: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"src\._made defines no 'Encodr'; nearest: Encoder"):
        build({"_target_": "src._made.Encodr"})
    with pytest.raises(ConfigError, match=r"there is no module src\.nope"):
        build({"_target_": "src.nope.X"})


def test_wrong_arguments_name_the_target(made: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"src\._made\.Encoder: .*'deep'; its arguments: depth"):
        build({"_target_": "src._made.Encoder", "depth": 1, "deep": 2})
    with pytest.raises(ConfigError, match=r"src\._made\.Encoder: missing .*'depth'"):
        build({"_target_": "src._made.Encoder"})


def test_errors_inside_a_target_are_its_own(made: types.ModuleType) -> None:
    with pytest.raises(TypeError, match="len"):
        build({"_target_": "src._made.Broken"})


def test_missing_values_are_refused(made: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match="depth"):
        build(OmegaConf.create({"_target_": "src._made.Encoder", "depth": "???"}))


# The project's own files


def plain(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))


def own_words() -> list[tuple[str, str]]:
    """Every choice that each entry can take, one word at a time."""
    words = [("fit", f"experiment={path.stem}") for path in (CONF / "experiment").glob("*.yaml")]
    for entry in CONF.glob("*.yaml"):
        for group in plain(entry).get("defaults", {}):
            words += [(entry.stem, f"{group}={path.stem}") for path in (CONF / str(group)).glob("*.yaml")]
    return sorted(words)


@pytest.mark.parametrize(("entry", "word"), own_words())
def test_own_files_compose(entry: str, word: str) -> None:
    _compose(entry, [word], CONF)
    assert word.partition("=")[2] in describe(entry, [word])


@pytest.mark.parametrize("path", sorted((CONF / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainer_files_hold_arguments_of_the_trainer(path: Path) -> None:
    keys = plain(path).keys() - {"defaults"}
    assert keys <= inspect.signature(lightning.Trainer).parameters.keys()


def test_null_and_other_types_are_refused_where_an_argument_is_plain():
    for value, told in ((None, "null"), ("fast", '"fast"'), (True, "true")):
        with pytest.raises(ConfigError, match=f"warmup={told} must be float"):
            build({"_target_": "src.runtime.schedules.pace", "done": 0.5, "warmup": value})
    assert build({"_target_": "src.runtime.schedules.pace", "done": 1, "warmup": 0}) == 0


def test_a_bare_key_is_told_how_to_be_one():
    with pytest.raises(ConfigError, match=r"'resume' is not key=value; nearest: resume="):
        compose("fit", ["model=rfnet", "resume"])


def told_commands() -> list[str]:
    """The commands in the head comments of conf/, a continued one on one line."""
    heads = [re.sub(r"\n# {4,}", " ", file.read_text(encoding="utf-8")) for file in CONF.rglob("*.yaml")]
    told = {line for head in heads for line in re.findall(r"python -m src\.fit (.*)", head)}
    return sorted(re.sub(r"\s{2,}[(#].*", "", line) for line in told)


@pytest.mark.parametrize("words", told_commands())
def test_every_command_that_a_configuration_tells_composes(words):
    assert compose("fit", shlex.split(words)).model._target_
