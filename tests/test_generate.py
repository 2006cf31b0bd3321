"""The command that paints ads, on tiny nets: what it writes, how it resumes, what it tells."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_sample_image

from src.build import build
from src.config import compose
from src.data.product_prompts import placed
from src.fit import run
from src.generate import lines, main, steering, summary
from tests.data.test_product_prompts import cutout
from tests.diffusion import tiny
from tests.rewards import tiny as nets

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("nets")
    tiny.generator().save(home / "generator")
    made = nets.rfnet(home)
    return [
        f"generator.folder={home / 'generator'}", "generator.num_steps=2", "size=64", "device=cpu", "threads=1",
        *(f"reward.{name}={place}" for name, place in made.items()), "batch_size=2",
    ]  # fmt: skip


def shop(folder: Path, count: int = 5) -> list[str]:
    """Products of different sizes with prompts and titles."""
    lines = ["key,prompt,title"]
    for i in range(count):
        cutout(folder / f"products/p{i}.png", (40 + 30 * i, 60), (5, 10, 25 + 20 * i, 50))
        lines.append(f"p{i},a red room,Chair {i}")
    (folder / "prompts.csv").write_text("\n".join(lines) + "\n")
    return [f"products={folder / 'products'}", f"prompts={folder / 'prompts.csv'}"]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate", *words])
    return main()


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_each_product_gets_a_picture_and_a_line(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ads"
    words = [*words, *shop(tmp_path), f"out={out}", "attempts=3", "threshold=-1.4"]
    assert command(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    rows = manifest(out)
    assert sorted(row["key"] for row in rows) == [f"p{i}" for i in range(5)]
    for row in rows:
        assert row["accepted"] == (row["values"][-1] >= -1.4)
        assert row["attempts"] == len(row["values"]) <= 3
        assert row["value"] == max(row["values"])
        assert row["seed"] == row["values"].index(row["value"])
        assert row["prompt"] == "a red room"
        assert Image.open(out / f"{row['key']}.png").size == (64, 64)
    assert f"{sum(row['accepted'] for row in rows)} of 5 accepted" in said
    assert json.loads((out / "summary.json").read_text()) == summary(rows, -1.4, num_steps=2)
    before = (out / "manifest.jsonl").read_bytes()
    assert command(monkeypatch, *words) == 0  # nothing is left to do
    assert (out / "manifest.jsonl").read_bytes() == before
    assert command(monkeypatch, *words, "resume=false") == 2
    assert "has results; use resume=true" in capsys.readouterr().err
    assert command(monkeypatch, *words, "size=66") == 2
    assert "size=66 must be a multiple of 4 px for this generator" in capsys.readouterr().err
    assert command(monkeypatch, *words, "seed=1") == 2
    assert "a run that differs in seed;" in capsys.readouterr().err


def test_killed_and_resumed_it_loses_no_product_and_does_none_twice(words, tmp_path, monkeypatch):
    words = [*words, *shop(tmp_path, 12), "attempts=2", "threshold=0.0"]
    assert command(monkeypatch, *words, f"out={tmp_path / 'whole'}") == 0
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "src.generate", *words, f"out={out}"], env=environment)
    deadline = time.monotonic() + 200
    while not (out / "p1.png").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(manifest_keys(out)) < 12
    with (out / "manifest.jsonl").open("a") as file:
        file.write('{"key": "p9", "acc')  # torn by the kill
    assert command(monkeypatch, *words, f"out={out}") == 0
    rows, whole = manifest(out), manifest(tmp_path / "whole")
    assert sorted(row["key"] for row in rows) == sorted({row["key"] for row in whole})
    values = {row["key"]: row["values"] for row in whole}
    for row in rows:
        assert row["values"] == pytest.approx(values[row["key"]], abs=1e-5)
        a, b = (np.asarray(Image.open(folder / f"{row['key']}.png"), int) for folder in (out, tmp_path / "whole"))
        assert abs(a - b).max() <= 1


def manifest_keys(out: Path) -> list[str]:
    lines = (out / "manifest.jsonl").read_text().splitlines() if (out / "manifest.jsonl").exists() else []
    return [line for line in lines if line.endswith("}")]


def test_bad_products_are_told_by_name_and_the_rest_goes_on(words, tmp_path, monkeypatch, capsys):
    places = shop(tmp_path, 2)
    folder = tmp_path / "products"
    Image.new("RGB", (8, 8)).save(folder / "opaque.png")
    Image.new("RGBA", (8, 8)).save(folder / "empty.png")
    (folder / "torn.png").write_bytes((folder / "p0.png").read_bytes()[:50])
    cutout(folder / "mute.png")
    cutout(folder / "nameless.png")
    with (tmp_path / "prompts.csv").open("a") as file:
        file.write("opaque,x,x\nempty,x,x\ntorn,x,x\nmute,,x\nnameless,x,\n")
    out = tmp_path / "ads"
    assert command(monkeypatch, *words, *places, f"out={out}", "attempts=1") == 1
    told = capsys.readouterr().out
    for name, reason in (
        ("opaque", "needs an alpha channel"), ("empty", "its alpha is empty"), ("torn", ""), ("mute", "no prompt"),
        ("nameless", "no title, which RFNetReward needs"),
    ):  # fmt: skip
        assert any(f"({name}): {name}.png: " in line and reason in line for line in told.splitlines())
    assert sorted(row["key"] for row in manifest(out)) == ["p0", "p1"]
    with (out / "failed.csv").open(newline="") as file:
        failed = list(csv.DictReader(file))
    assert {row["key"] for row in failed} == {"opaque", "empty", "torn", "mute", "nameless"}
    assert all(f"{row['file']}: {row['reason']}" in told for row in failed)
    cutout(folder / "empty.png")
    assert command(monkeypatch, *words, *places, f"out={out}", "attempts=1") == 1
    assert "4 failed rows" in capsys.readouterr().out, "failed rows are tried again"


def test_what_is_painted_is_what_is_asked_for_now(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ads"
    words = [*words, *shop(tmp_path, 2), f"out={out}", "attempts=1"]
    assert command(monkeypatch, *words) == 0
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(prompts.read_text().replace("p1,a red room", "p1.png,a blue room"))  # a key may be a file's name
    assert command(monkeypatch, *words) == 2
    assert "ads: product, prompt or title of p1 (1 in all) have changed; choose another out" in capsys.readouterr().err
    lines = (out / "manifest.jsonl").read_text().splitlines()
    (out / "p1.png").unlink()
    assert command(monkeypatch, *words) == 0
    assert {row["key"]: row["prompt"] for row in manifest(out)} == {"p0": "a red room", "p1": "a blue room"}
    assert command(monkeypatch, *words, "attempts=2") == 2
    assert "a run that differs in attempts; choose another out" in capsys.readouterr().err
    (out / "manifest.jsonl").write_text('{"key": "p0", "acc\n' + lines[1] + "\n")
    assert command(monkeypatch, *words) == 2
    assert "manifest.jsonl, line 1 is damaged" in capsys.readouterr().err
    (out / "manifest.jsonl").write_text(lines[0] + '\n{"value": 0.5}\n')
    assert command(monkeypatch, *words) == 2
    assert "manifest.jsonl, line 2 is damaged" in capsys.readouterr().err


def test_pictures_of_other_weights_are_not_taken_for_done(words, tmp_path, monkeypatch, capsys):
    made = dict(word.split("=") for word in words)
    folder = tmp_path / "generator"
    shutil.copytree(made["generator.folder"], folder)
    words = [*words, *shop(tmp_path, 2), f"generator.folder={folder}", f"out={tmp_path / 'ads'}", "attempts=1"]
    assert command(monkeypatch, *words) == 0
    tiny.generator(seed=1).save(folder)  # tuned again, say
    assert command(monkeypatch, *words) == 2
    assert "ads has results of a run that differs in generator weights; choose another out" in capsys.readouterr().err


def test_pictures_of_other_settings_are_not_taken_for_done_wherever_those_were_given(
    words, tmp_path, monkeypatch, capsys
):
    made = dict(word.split("=") for word in words)
    folder = tmp_path / "generator"
    shutil.copytree(made["generator.folder"], folder)
    words = [*words, *shop(tmp_path, 2), f"generator.folder={folder}", f"out={tmp_path / 'ads'}", "attempts=1"]
    assert command(monkeypatch, *words) == 0
    assert command(monkeypatch, *words, "precision=bfloat16") == 2
    assert "ads has results of a run that differs in precision; choose another out" in capsys.readouterr().err
    node = {"_target_": "src.models.rfft.system.RFFT", "generator": {"folder": "./", "guidance_scale": 2.0}}
    OmegaConf.save(OmegaConf.create({"model": node}), folder / "config.yaml")
    assert command(monkeypatch, *words) == 2
    assert "ads has results of a run that differs in generator.guidance_scale; choose" in capsys.readouterr().err
    (folder / "config.yaml").unlink()
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.02}))
    assert command(monkeypatch, *words) == 2
    assert "ads has results of a run that differs in generator.scheduler; choose" in capsys.readouterr().err


def test_the_products_are_not_painted_over(words, tmp_path, monkeypatch, capsys):
    places = shop(tmp_path, 2)
    before = (tmp_path / "products/p0.png").read_bytes()
    assert command(monkeypatch, *words, *places, f"out={tmp_path}/prompts/../products", "attempts=1") == 2
    assert "is the folder of the products" in capsys.readouterr().err
    assert (tmp_path / "products/p0.png").read_bytes() == before


def test_products_and_tables_of_the_user_in_the_output_folder_are_not_replaced(words, tmp_path, monkeypatch, capsys):
    places = shop(tmp_path, 2)
    before = (tmp_path / "products/p0.png").read_bytes()
    assert command(monkeypatch, *words, *places, f"out={tmp_path}", "attempts=1") == 2
    assert "or has it as products/: they would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "products/p0.png").read_bytes() == before
    out = tmp_path / "ads"
    out.mkdir()
    (out / "images.csv").write_text("mine")
    assert command(monkeypatch, *words, *places, f"out={out}", "attempts=1") == 2
    assert "images.csv was not written by this command" in capsys.readouterr().err
    assert (out / "images.csv").read_text() == "mine"


def test_a_picture_that_is_gone_is_painted_again_and_a_foreign_one_never_painted_over(
    words, tmp_path, monkeypatch, capsys
):
    out, words = tmp_path / "ads", [*words, *shop(tmp_path, 3), "attempts=1"]
    assert command(monkeypatch, *words, f"out={out}") == 0
    rows, picture = manifest(out), pixels(out / "p1.png")
    (out / "p1.png").unlink()
    assert command(monkeypatch, *words, f"out={out}") == 0
    # Alone in its batch this time: some processors then round the last bit differently.
    assert np.abs(pixels(out / "p1.png") - picture).max() <= 1
    for again, row in zip(*(sorted(them, key=lambda row: row["key"]) for them in (manifest(out), rows)), strict=True):
        assert again.pop("values") == pytest.approx(row.pop("values"), abs=1e-4)
        assert again.pop("value") == pytest.approx(row.pop("value"), abs=1e-4)
        assert again == row
    mine = cutout(tmp_path / "mine/p2.png")
    before = mine.read_bytes()
    assert command(monkeypatch, *words, f"out={mine.parent}") == 2
    assert "mine/p2.png was not written by this command; choose another out" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_other_seeds_share_no_attempt(words, tmp_path, monkeypatch):
    words = [*words, *shop(tmp_path, 2), "attempts=3", "threshold=0"]
    values = []
    for seed in (0, 1):
        assert command(monkeypatch, *words, f"seed={seed}", f"out={tmp_path / str(seed)}") == 0
        values += [value for row in manifest(tmp_path / str(seed)) for value in row["values"]]
    assert len(set(values)) == len(values) == 12


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("threshold=0.1", "threshold=0.1: RFNetReward is never above 0.0"),
        ("threshold=few", "threshold=few: a number is needed"), ("seed=null", "seed=null: a number is needed"),
        ("reward.threshold=null", "threshold=null: RFNetReward states none; a number is needed"),
        ("reward=null", "reward=null: choose a reward"), ("centre=[a,b]", "two numbers are needed"),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_one_line(word, told, words, tmp_path, monkeypatch, capsys):
    words = [name for name in words if word != "reward=null" or not name.startswith("reward.")]
    assert command(monkeypatch, *words, *shop(tmp_path, 1), f"out={tmp_path / 'ads'}", word) == 2
    assert told in capsys.readouterr().err


def test_guidance_is_by_the_accepting_reward_which_is_loaded_once_or_by_another(words, tmp_path, monkeypatch, capsys):
    places = [*shop(tmp_path, 2), "attempts=1", "guidance=reward", "guidance.scale=3", "guidance.start=0"]
    config = compose("generate", [*words, *places])
    reward = build(config.reward)
    guidance = steering(config, reward)
    assert guidance is not None
    assert guidance.reward is reward
    assert steering(compose("generate", [*words, *shop(tmp_path, 2)]), reward) is None
    other = ["guidance.reward=rahf", f"guidance.reward.checkpoint={nets.rahf(tmp_path / 'nets')['checkpoint']}"]
    guidance = steering(compose("generate", [*words, *places, *other]), reward)
    assert guidance is not None
    assert type(guidance.reward).__name__ == "RAHFReward"
    for name, more in (("own", []), ("other", other)):
        assert command(monkeypatch, *words, *places, *more, f"out={tmp_path / name}") == 0
    assert np.abs(pixels(tmp_path / "own/p0.png") - pixels(tmp_path / "other/p0.png")).max() > 1
    assert command(monkeypatch, *words, *places, *other, f"out={tmp_path / 'own'}") == 2
    assert "a run that differs in guidance" in capsys.readouterr().err


def test_the_reward_that_guides_needs_its_titles_too(words, tmp_path, monkeypatch, capsys):
    own = [word for word in words if not word.startswith("reward.")]
    guide = [f"guidance.{word}" for word in words if word.startswith("reward.")]
    accepts = ["reward=rahf", f"reward.checkpoint={nets.rahf(tmp_path / 'nets')['checkpoint']}", "threshold=0"]
    told = [*own, *accepts, "guidance=reward", "guidance.reward=rfnet", *guide, *shop(tmp_path, 2), "attempts=1"]
    with (tmp_path / "prompts.csv").open("a") as file:
        file.write("mute,x,\n")
    cutout(tmp_path / "products/mute.png")
    assert command(monkeypatch, *told, f"out={tmp_path / 'ads'}") == 1
    assert "mute.png: no title, which RFNetReward needs" in capsys.readouterr().out


def test_half_a_character_in_a_prompt_costs_its_own_picture_only(words, tmp_path, monkeypatch, capsys):
    products, _ = shop(tmp_path, 2)
    lines = [
        f'{{"key": "p{i}", "prompt": "a {word} room", "title": "x"}}\n' for i, word in enumerate(["\\ud83d", "red"])
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    places = [products, f"prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'ads'}"]
    assert command(monkeypatch, *words, *places, "attempts=1") == 1
    assert "p0.png: the prompt is not valid UTF-8" in capsys.readouterr().out
    assert [row["key"] for row in manifest(tmp_path / "ads")] == ["p1"]


def test_prompts_without_titles_for_a_reward_that_reads_them_are_refused_at_once(words, tmp_path, monkeypatch, capsys):
    shop(tmp_path, 1)
    (tmp_path / "prompts.txt").write_text("a red room\n")
    places = [f"products={tmp_path / 'products'}", f"prompts={tmp_path / 'prompts.txt'}", f"out={tmp_path / 'ads'}"]
    assert command(monkeypatch, *words, *places) == 2
    assert "RFNetReward needs titles; give a table of key,prompt,title" in capsys.readouterr().err


def test_a_name_that_is_no_utf8_costs_its_own_picture_only(words, tmp_path, monkeypatch, capsys):
    places = shop(tmp_path, 1)
    odd = os.fsdecode(os.fsencode(tmp_path / "products") + b"/chair\xff.png")
    (tmp_path / "products/p0.png").rename(tmp_path / "products/p1.png")
    try:
        Path(odd).write_bytes((tmp_path / "products/p1.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with (tmp_path / "prompts.csv").open("a") as file:
        file.write("p1,a red room,Chair\n")
    assert command(monkeypatch, *words, *places, f"out={tmp_path / 'ads'}", "attempts=1") == 1
    assert "the name is not valid UTF-8" in capsys.readouterr().out
    assert [row["key"] for row in manifest(tmp_path / "ads")] == ["p1"]


def test_the_summary_counts_acceptance_by_attempt():
    rows = [{"values": values} for values in ([0.7], [0.1, 0.2, 0.5], [0.1, 0.4, 0.3], [0.6])]
    told = summary(rows, 0.5, num_steps=40)
    assert told == {
        "products": 4, "accepted": 3, "available_rate": [0.5, 0.5, 0.75],
        "attempts_per_accepted": 8 / 3, "unet_calls_per_accepted": 8 / 3 * 40,
    }  # fmt: skip
    assert lines(told) == [
        "3 of 4 accepted", "  within 1 attempt: 50.0%", "  within 2 attempts: 50.0%", "  within 3 attempts: 75.0%",
        "2.67 attempts and 107 UNet calls per accepted image",
    ]  # fmt: skip
    assert lines(summary([], 0.5, 40)) == ["0 of 0 accepted"]


def test_the_summary_of_a_pool_counts_each_accepted_image():
    told = summary([{"values": [0.1, 0.5, 0.9]}, {"values": [0.1, 0.2, 0.3]}], 0.5, num_steps=10)
    assert told == {
        "products": 2, "accepted": 1, "available_rate": [0.0, 0.5, 0.5],
        "attempts_per_accepted": 3.0, "unet_calls_per_accepted": 30.0,
    }  # fmt: skip


def test_the_reward_states_the_threshold_unless_it_is_given(words, tmp_path, monkeypatch, capsys):
    own = [word for word in words if not word.startswith("reward.")]
    own += ["reward=rahf", f"reward.checkpoint={nets.rahf(tmp_path / 'nets')['checkpoint']}", *shop(tmp_path, 2)]
    for name, more, least in (("own", [], 0.5), ("given", ["threshold=0.001"], 0.001), ("none", ["threshold=1"], 1)):
        assert command(monkeypatch, *own, *more, f"out={tmp_path / name}", "attempts=2") == 0
        assert all(row["accepted"] == (row["values"][-1] >= least) for row in manifest(tmp_path / name))
        assert json.loads((tmp_path / name / "run.json").read_text())["settings"]["threshold"] == least
    assert command(monkeypatch, *own, f"out={tmp_path / 'own'}", "threshold=0.5", "attempts=2") == 0
    assert command(monkeypatch, *own, f"out={tmp_path / 'own'}", "threshold=1.5", "attempts=2") == 2
    assert "threshold=1.5: RAHFReward is never above 1.0" in capsys.readouterr().err


def test_real_photographs_of_any_size_are_painted_around(words, tmp_path, monkeypatch):
    folder = tmp_path / "products"
    folder.mkdir()
    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        height, width = photo.shape[:2]
        assert (height, width) == (427, 640)
        y, x = np.mgrid[:height, :width]
        mask = ((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2 < 0.16).astype(np.uint8) * 255
        Image.fromarray(np.dstack([photo, mask])).save(folder / f"{name}.png")
    lines = [f'{{"key": "{name}", "prompt": "a red room", "title": "{name}"}}' for name in ("china", "flower")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "ads"
    words = [*words, f"products={folder}", f"prompts={tmp_path / 'prompts.jsonl'}", f"out={out}", "attempts=1"]
    assert command(monkeypatch, *words) == 0
    for name in ("china", "flower"):
        picture = np.asarray(Image.open(out / f"{name}.png"), float)
        assert picture.shape == (64, 64, 3)
        photo = np.asarray(Image.fromarray(load_sample_image(f"{name}.jpg")[171:256, 256:384]).resize((12, 8)), float)
        assert abs(picture[24:40, 24:40].mean(axis=(0, 1)) - photo.mean(axis=(0, 1))).max() < 40  # it is there


@pytest.mark.parametrize(
    ("regularizer", "trainable"), [("cc", "controlnet"), ("kl", "unet"), ("none", "unet_lora"), ("cc_authors", "unet")]
)
def test_tune_on_a_product_folder_and_generate(regularizer, trainable, words, tmp_path, monkeypatch):
    made = dict(word.split("=") for word in words)
    places = [f"{key}={made[key]}" for key in made if key.startswith(("generator.folder", "reward."))]
    mine = [word.replace("products=", "data.source.folder=").replace("prompts=", "data.source.prompts=")
            for word in shop(tmp_path, 6)]  # fmt: skip
    told = [
        "model=rfft", f"regularizer={regularizer}", f"model.trainable={trainable}", "data=products", *mine, *places,
        "data.source.size=64", "data.batch_size=2", "data.num_workers=0", "generator.num_steps=4", "steps.draws=1",
        "evaluator=none", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2",
        "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    config = OmegaConf.to_container(compose("fit", told), resolve=True)
    metrics = run(config)  # type: ignore[arg-type]
    assert {"test/reward", "test/before_reward"} <= metrics.keys()
    assert (tmp_path / "run/figures/before_after.png").is_file()
    shown = [word for word in words if not word.startswith("generator.folder")]
    tuned = f"generator.folder={tmp_path / 'run/checkpoint'}"
    assert command(monkeypatch, *shown, tuned, *shop(tmp_path, 6), f"out={tmp_path / 'ads'}", "attempts=1") == 0
    assert len(manifest(tmp_path / "ads")) == 6


def test_a_pool_keeps_all_attempts_and_lists_them_in_a_table(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pool"
    places = [*shop(tmp_path, 2), f"out={out}", "attempts=3", "threshold=-100", "pool=true"]
    assert command(monkeypatch, *words, *places) == 0
    assert "1.00 attempts and 2 UNet calls per accepted image" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.png")) == [f"p{i}.{n}.png" for i in range(2) for n in range(3)]
    rows = {row["key"]: row for row in manifest(out)}
    with (out / "images.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["key"] for row in table] == [f"p{i}.{n}" for i in range(2) for n in range(3)]
    for row in table:
        key, number = row["key"].split(".")
        assert float(row["value"]) == rows[key]["values"][int(number)]
        assert (row["prompt"], row["title"], row["product"]) == ("a red room", f"Chair {key[1]}", f"products/{key}.png")
        image, product = pixels(out / row["image"]), pixels(out / row["product"])
        assert np.abs(image - product[..., :3])[product[..., 3] == 255].max() <= 1
    (out / "p0.1.png").unlink()
    assert command(monkeypatch, *words, *places) == 0
    assert (out / "p0.1.png").exists()
    with (out / "images.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [row["image"] for row in table]


def test_the_product_is_that_of_its_file_and_odd_products_and_long_prompts_are_told(words, tmp_path, monkeypatch):
    rng, y, x = np.random.default_rng(0), *np.mgrid[:150, :150]
    noise = rng.integers(0, 256, (150, 150, 4), dtype=np.uint8)
    noise[..., 3] = np.where((np.abs(x - 75) < 60) & (np.abs(y - 75) < 50), 255, 0)
    rim = np.full((150, 150, 4), 255, np.uint8)
    alpha = np.clip((50 - np.hypot(x - 75, y - 75)) / 4, 0, 1)
    rim[..., :3], rim[..., 3] = 200 * alpha[..., None], 255 * alpha  # premultiplied
    (tmp_path / "in").mkdir()
    Image.fromarray(noise).save(tmp_path / "in/noise.png")
    Image.fromarray(rim).save(tmp_path / "in/rim.png")
    (tmp_path / "prompts.csv").write_text(f"key,prompt,title\nnoise,a red room,Chair\nrim,{'a b ' * 15},Lamp\n")
    asked = [f"products={tmp_path / 'in'}", f"prompts={tmp_path / 'prompts.csv'}", "attempts=1", "size=96"]
    with pytest.warns(UserWarning, match=r"soft edges mixed with black .*: rim\.png \(1 of 2 products\)") as told:
        assert command(monkeypatch, *words, *asked, f"out={tmp_path / 'ads'}") == 0
    lines = [str(warning.message) for warning in told]
    assert any(line.startswith("the prompt of rim is truncated to 24 tokens") for line in lines)
    assert {row["key"]: row["unread"] for row in manifest(tmp_path / "ads")} == {"noise": [], "rim": ["a", "b"] * 4}
    made = pixels(tmp_path / "ads/noise.png")
    assert made.shape == (96, 96, 3)
    product = placed(tmp_path / "in/noise.png", 96).transpose(1, 2, 0)  # once from the original
    opaque = product[..., 3] == 255
    assert opaque.sum() > 1000
    assert (made[opaque] == product[opaque][:, :3]).all()
    with pytest.warns(UserWarning, match="96 px"):
        assert command(monkeypatch, *words, *asked, f"out={tmp_path / 'b'}", "generator.long_prompts=refuse") == 1
    failed = (tmp_path / "b/failed.csv").read_text()
    assert "rim.png,the prompt is too long for the text encoder; not read: a b a b a b a b" in failed
    assert [row["key"] for row in manifest(tmp_path / "b")] == ["noise"]
