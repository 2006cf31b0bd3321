"""The table of regularizers: which runs it starts and what it makes of their figures."""

import re
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import image
from omegaconf import OmegaConf

from benchmarks.regularizers import (
    command,
    draw,
    draw_ways,
    intervals,
    logged,
    measured,
    products,
    records,
    summary,
    table,
)
from src.config import compose
from src.data.samplers import EvaluationBatches
from tests.diffusion import tiny

RUNS = [
    {"test/availability": 0.8, "test/diversity": 0.3, "test/attribute_accuracy": 0.7, "test/reward": -0.2}
    | {f"test/before_{name}": 0.5 for name in ("availability", "diversity", "attribute_accuracy", "reward")},
    {"test/availability": 0.9, "test/diversity": 0.1, "test/attribute_accuracy": 0.7, "test/reward": -0.1}
    | {f"test/before_{name}": 0.5 for name in ("availability", "diversity", "attribute_accuracy", "reward")},
]


def test_mean_and_deviation_by_hand(tmp_path: Path) -> None:
    found = summary(RUNS)
    told = {"mean": pytest.approx(0.85), "sd": pytest.approx(0.0707, abs=1e-4), "runs": [0.8, 0.9]}
    assert found["availability"] == told
    assert found["before_diversity"] == {"mean": 0.5, "sd": 0.0, "runs": [0.5, 0.5]}
    alone = summary(RUNS[:1])
    assert alone["availability"] == {"mean": 0.8}
    lines = table({"cc": found}).splitlines()
    assert lines[2].startswith("| before | 0.500 +- 0.000 |")
    assert lines[3].startswith("| cc | -0.150 +- 0.071 | 0.850 +- 0.071 |")
    assert table({"cc": alone}).splitlines()[3] == "| cc | -0.200 | 0.800 | 0.700 | 0.300 |"
    draw({"cc": found, "kl": alone}, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_the_gradients_are_the_means_of_what_a_run_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    for step, cosine in ((9, -0.2), (19, 0.4)):
        logger.log_metrics({"grad/cosine": cosine, "grad/reward_norm": 2.0, "train/reward": 1.0}, step)
    logger.save()
    found = logged(tmp_path)
    assert found == {"grad/reward_norm": 2.0, "grad/cosine": pytest.approx(0.1)}
    whole = summary([RUNS[0] | found, RUNS[1] | found | {"grad/cosine": 0.3}])
    assert whole["gradient_cosine"]["mean"] == pytest.approx(0.2)
    lines = table({"cc": whole}).splitlines()
    assert lines[2].endswith("|  |")
    assert lines[3].endswith("| 0.200 +- 0.141 |")


def test_intervals_are_those_of_products_and_of_means_over_seeds(tmp_path: Path) -> None:
    """Of two products in three records; the means of the draws: tests/metrics/test_intervals.py."""
    runs = []
    for seed, after in enumerate(([0.0, 1.0, 0.0], [0.0, 0.0, 0.0])):
        folder = tmp_path / f"{seed}/figures"
        folder.mkdir(parents=True)
        lines = [f"k{i},p,0.0,{value},nan,0.5" for i, value in enumerate(after)]
        head = "key,prompt,before_reward,reward,before_attribute_accuracy,attribute_accuracy"
        (folder / "measures.csv").write_text("\n".join([head, *lines]))
        runs.append(records(tmp_path / f"{seed}"))
    found = intervals(runs, {"k0": "a", "k1": "b", "k2": "a"})
    assert found == {"before_reward": [0, 0], "reward": [0, 0.5], "gain_reward": [0, 0.5]}
    assert records(tmp_path / "none") == {}
    told = {name: {"mean": 0.25, "interval": limits} for name, limits in found.items()}
    assert table({"cc": told}).splitlines()[3] == "| cc | 0.250 (0.000 to 0.500) |"


def test_the_showrooms_test_records_show_few_products() -> None:
    words = ["model=rfft", "data.source.num={train: 8, val: 8, test: 2000}"]
    keys = [f"test-{index:07d}" for index in next(iter(EvaluationBatches(2000, 128, shuffled=True)))]
    assert len({*products(words, keys).values()}) == 23


@pytest.mark.parametrize("way", ["none", "kl", "cc", "cc@0.3", "cc_authors@2"])
def test_its_runs_are_configurations(way: str) -> None:
    words = {"runs": "runs/x", "evaluator": "none"}
    config = compose("fit", command(way, "1", words, ["trainer.max_steps=3"])[3:])
    assert config.choices.regularizer == way.partition("@")[0]
    assert config.seed == 1
    assert config.out == f"runs/x/{way}-1"
    if "@" in way:
        assert config.regularizer.beta == float(way.partition("@")[2])


def test_a_way_may_have_words_of_its_own() -> None:
    words = {"runs": "runs/x", "evaluator": "none"}
    run = command(
        "kl@2 model.reward_augmentation.number=0 generator.folder=a/b",
        "1",
        words,
        ["model.reward_augmentation.number=3", "model.lr=1e-4"],
    )
    config = compose("fit", run[3:])
    assert (config.choices.regularizer, config.regularizer.beta) == ("kl", 2.0)
    assert (config.model.reward_augmentation.number, config.model.lr, config.generator.folder) == (0, 1e-4, "a/b")
    assert config.out == "runs/x/kl@2-model.reward_augmentation.number=0-generator.folder=a-b-1"


def test_a_finished_run_is_read_and_one_of_other_words_or_without_numbers_refused(tmp_path: Path) -> None:
    words = {"runs": str(tmp_path), "evaluator": "none"}
    run = command("kl", "1", words, [])[3:]
    assert measured(run) is None
    config = compose("fit", run)
    (tmp_path / "kl-1/checkpoint").mkdir(parents=True)
    assert measured(run) is None
    OmegaConf.save(config, tmp_path / "kl-1/config.yaml", resolve=True)
    file = tmp_path / "kl-1/checkpoint/metrics.json"
    file.write_text('{"test/reward": -0.5}')
    assert measured(run) == {"test/reward": -0.5}
    for word, told in (
        ("model.lr=0.5", "model.lr (0.003 -> 0.5)"), ("trainer.max_steps=9", "trainer.max_steps (80 -> 9)"),
        ("trainer.limit_test_batches=1", "trainer.limit_test_batches (16 -> 1)"),
        ("dtype=float16", "dtype (float32 -> float16)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(f"kl-1 contains a run with another {told}; choose")):
            measured(command("kl", "1", words, [word])[3:])
    unseen = ["data.num_workers=1", "trainer.limit_val_batches=1"]  # what the figures do not depend on
    assert measured([*run, *unseen]) == {"test/reward": -0.5}
    file.write_text('{"test/reward": null}')
    with pytest.raises(ValueError, match="test/reward is not finite: did the training diverge"):
        measured(run)


def test_the_sheet_has_a_column_for_every_way(tmp_path: Path) -> None:
    tiny.generator(0).save(tmp_path / "before")
    words = {"runs": str(tmp_path), "evaluator": "none"}
    more = [f"generator.folder={tmp_path}/before", "generator.num_steps=2", "data.source.cache=null",
            "data.source.size=64"]  # fmt: skip
    runs = {way: command(way, "1", words, more)[3:] for way in ("none", "cc@2")}
    for seed, way in enumerate(runs, start=1):
        tiny.generator(seed).save(tmp_path / f"{way}-1/checkpoint")
    draw_ways(runs, tmp_path / "sheet.png")
    height, width, _ = image.imread(tmp_path / "sheet.png").shape
    assert height / width == pytest.approx(10 * (2.05 + 0.4) / (3 * 2.05), rel=0.05)
