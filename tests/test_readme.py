"""The figures of the README and of benchmarks/README.md are those that were measured and lie in the repository."""

import json
import re
from pathlib import Path

import pytest

MEASURES = ("availability_f1", "availability_ap", "macro_f1", "ece")
TABLE = re.compile(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.M)


def figures(start: str) -> list[float]:
    (row,) = [row for row in TABLE.findall(Path("README.md").read_text(encoding="utf-8")) if start in row[0]]
    return [float(cell) for cell in row[1:]]


def rounded(metrics: dict[str, float], prefix: str) -> list[float]:
    return [round(metrics[f"{prefix}/{name}"] + 1e-9, 3) for name in MEASURES]


def test_the_first_rows_are_the_shipped_checkpoints() -> None:
    metrics = json.loads(Path("checkpoints/rfnet/metrics.json").read_text(encoding="utf-8"))
    assert figures("all inputs") == pytest.approx(rounded(metrics, "test"), abs=6e-4)
    assert figures("the same, depth and saliency computed") == pytest.approx(
        rounded(metrics, "test_perceived"), abs=6e-4
    )
    reward = json.loads(Path("checkpoints/rfnet-reward/metrics.json").read_text(encoding="utf-8"))
    assert figures("rfnet-reward") == pytest.approx(rounded(reward, "test_perceived"), abs=6e-4)
    (repainted,) = re.findall(r"its AP is (\d\.\d+)", Path("README.md").read_text(encoding="utf-8"))
    assert float(repainted) == pytest.approx(reward["test_repainted/availability_ap"], abs=6e-4)


@pytest.mark.parametrize("name", ["title", "picture", "saliency", "depth", "product"])
def test_the_ablations_are_those_measured_and_lie_below_the_full_model(name: str) -> None:
    rows = json.loads(Path("benchmarks/results/rfnet.json").read_text(encoding="utf-8"))["rows"]
    found = rounded(rows[f"without the {name}"]["metrics"], "test")
    assert figures(f"without the {name}") == pytest.approx(found, abs=6e-4)
    assert all(
        cell < whole for cell, whole in zip(found[:2], rounded(rows["all inputs"]["metrics"], "test"), strict=False)
    )


def test_the_baseline_is_the_picture_alone() -> None:
    rows = json.loads(Path("benchmarks/results/rfnet.json").read_text(encoding="utf-8"))["rows"]
    assert figures("picture alone") == pytest.approx(rounded(rows["picture alone"]["metrics"], "test"), abs=6e-4)


def test_the_demo_is_the_run_that_was_measured() -> None:
    measured = json.loads(Path("benchmarks/results/demo.json").read_text(encoding="utf-8"))
    text = Path("README.md").read_text(encoding="utf-8")
    for title, when in (("before", "before_"), ("after `make demo`", "")):
        (cells,) = re.findall(rf"^\| {title} \| (.+) \|$", text, re.M)
        names = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity")
        assert [float(cell) for cell in cells.split(" | ")] == pytest.approx(
            [measured[f"test/{when}{name}"] for name in names], abs=6e-4
        )


def test_what_tuning_saves_in_attempts_is_what_was_measured() -> None:
    measured = json.loads(Path("benchmarks/results/generate.json").read_text(encoding="utf-8"))
    text = Path("README.md").read_text(encoding="utf-8")
    for title, when in (("shipped", "before"), ("tuned", "after")):
        (cells,) = re.findall(rf"^\| {title} \| (.+) \|$", text, re.M)
        rates, found = measured[when]["available_rate"], measured[when]
        told = [*(rates[n - 1] for n in (1, 2, 4, 8)), found["attempts_per_accepted"], found["unet_calls_per_accepted"]]
        for cell, figure, digits in zip(cells.split(" | "), told, (3, 3, 3, 3, 2, 0), strict=True):
            assert float(cell) == pytest.approx(figure, abs=0.6 * 10**-digits)


def test_the_costs_of_a_gradient_sample_are_those_measured() -> None:
    found = json.loads(Path("benchmarks/results/tuning.json").read_text(encoding="utf-8"))
    ways = found["showroom-generator controlnet size=null batch=8 steps=40 cpu float32"]["ways"]
    text = Path("README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| .+ \| (\d\.\d{3}) \| (\d+) \|$", text, re.M)
    assert [(float(seconds), float(memory)) for seconds, memory in cells] == [
        (pytest.approx(way["seconds"], abs=6e-4), pytest.approx(way["MiB"], abs=0.6)) for way in ways.values()
    ]
    refl, one, three, chain = (ways[name] for name in ("refl", "rfft", "rfft_draws", "alignprop"))
    assert f"{refl['seconds'] / one['seconds']:.1f} times as fast" in text
    assert f"{refl['seconds'] / three['seconds']:.1f} times with three" in text
    assert f"in {one['MiB'] / chain['MiB']:.0%} and {three['MiB'] / chain['MiB']:.0%}".replace("%", " %") in text


@pytest.mark.parametrize(
    ("page", "heading", "file", "rows"),
    [
        (
            "README.md", "## Measured", "regularizers",
            {"the generator as it was": "before", "`none`": "none", "`kl`, beta 5": "kl", "`cc`, beta 1": "cc"},
        ),
        (
            "benchmarks/README.md", "## Twice as long", "longer",
            {
                "`none`, 160 steps": "none trainer.max_steps=160",
                "`kl`, beta 5, 160 steps": "kl trainer.max_steps=160",
                "`cc`, beta 1, 160 steps": "cc trainer.max_steps=160",
            },
        ),
        (
            "benchmarks/README.md", "## Which beta", "betas",
            {
                "`none`": "none", "`cc`, beta 0.3": "cc@0.3", "`cc`, beta 1": "cc", "`cc`, beta 3": "cc@3",
                "`cc_authors`, beta 50": "cc_authors", "`kl`, beta 1": "kl@1", "`kl`, beta 5": "kl",
                "`kl`, beta 20": "kl@20",
            },
        ),
    ],
)  # fmt: skip
def test_the_comparisons_of_regularizers_are_those_measured(page: str, heading: str, file: str, rows: dict) -> None:
    measured = json.loads(Path(f"benchmarks/results/{file}.json").read_text(encoding="utf-8"))["ways"]
    text = Path(page).read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    names = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity", "gradient_cosine")
    assert {*rows.values()} - {"before"} == measured.keys()
    for title, way in rows.items():
        (row,) = re.findall(rf"^\| {title} \| (-\d.+) \|$", text, re.M)
        cells = [[float(number) for number in cell.split(" ± ")] for cell in row.split(" | ") if cell.strip(" -")]
        found, when = (measured["cc"], "before_") if way == "before" else (measured[way], "")
        told = [found[when + name] for name in names if when + name in found]
        assert len(cells) == len(told)
        for cell, figure in zip(cells, told, strict=True):
            assert cell == pytest.approx([figure["mean"], figure.get("sd")][: len(cell)], abs=6e-4)


def test_the_other_judges_figures_are_those_measured() -> None:
    ways = json.loads(Path("benchmarks/results/other_judge.json").read_text(encoding="utf-8"))["ways"]
    text = Path("benchmarks/README.md").read_text(encoding="utf-8").partition("## A judge of another")[2]
    names = ("reward", "availability", "attribute_accuracy", "diversity", "dissimilarity", "between_prompts")
    for title, way, when in (
        ("the generator as it was", "cc", "before_"), ("`none`", "none", ""), ("`kl`, beta 5", "kl", ""),
        ("`cc`, beta 1", "cc", ""),
    ):  # fmt: skip
        (row,) = re.findall(rf"^\| {title} \| (-\d.+) \|$", text, re.M)
        told = [ways[way][when + name]["mean"] for name in names]
        assert [float(cell) for cell in row.split(" | ")] == pytest.approx(told, abs=6e-4)


def test_the_remedies_are_those_measured() -> None:
    ways = json.loads(Path("benchmarks/results/remedies.json").read_text(encoding="utf-8"))["ways"]
    text = Path("benchmarks/README.md").read_text(encoding="utf-8")
    names = ("availability", "attribute_accuracy", "diversity", "dissimilarity")
    rows = {
        "as `make demo`": "cc",
        "an RFNet that never saw": "cc reward.checkpoint=checkpoints/rfnet",
        "the reward sees the picture itself": "cc model.reward_augmentation.number=0",
        "a smaller step": "cc model.lr=1e-3",
        "two RFNets": "cc reward=mix reward.rewards.second.checkpoint=runs/second-reward/checkpoint",
        "`generator.dilation=8`, before": "cc generator.dilation=8",
    }
    assert {*rows.values()} == ways.keys()
    for title, way in rows.items():
        (row,) = re.findall(rf"^\| {title}.*? \| (\d.+) \|$", text, re.M)
        found = {name: figure["mean"] for name, figure in ways[way].items()}
        told = [found["reward"] - found["before_reward"], *(found[name] for name in names)]
        assert [float(cell) for cell in row.split(" | ")] == pytest.approx(told, abs=6e-4)
    start = ways["cc generator.dilation=8"]["before_availability"]["mean"]
    assert f"before tuning: availability {start:.3f}" in text


def test_the_full_sizes_cost_is_the_one_measured() -> None:
    found = json.loads(Path("benchmarks/results/tuning.json").read_text(encoding="utf-8"))
    way = found["sd15 controlnet size=128 batch=1 steps=40 cpu float32"]["ways"]["rfft"]
    text = " ".join(Path("README.md").read_text(encoding="utf-8").split())
    assert f"{way['seconds']:.0f} s a gradient sample, 40 steps of rollout included" in text
    assert f"{way['MiB'] / 1024:.1f} GiB above the nets and {way['all'] / 1024:.1f} GiB in all" in text
