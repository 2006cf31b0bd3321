"""The benchmark of preference alignment: the whole recipe on tiny networks, and what it makes of its figures."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import adaptation, report
from benchmarks.image_measures import measured
from src.models.features import feature_net
from src.rewards.base import Reward, Score
from src.runtime.checkpoint import model_config
from tests.diffusion import tiny
from tests.rewards import tiny as nets


def words(folder: Path) -> list[str]:
    """Tiny networks and sizes."""
    tiny.generator().save(folder / "generator")
    for name in ("hps", "clip", "judge"):
        (folder / name).mkdir()
    hps, clip, judge = nets.hps(folder / "hps"), nets.clip(folder / "clip"), nets.rfnet(folder / "judge")
    return [
        f"generator=showroom folder={folder / 'generator'} num_steps=2", "pool=4", "num=3", "good=4", "size=64",
        f"select=hps checkpoint={hps['checkpoint']}", "scale=1e6", "seeds=0", "threads=1", "device=cpu",
        f"rewards=hps=hps checkpoint={hps['checkpoint']}; clip=clip name={clip['name']} weights={clip['weights']}",
        f"judge=rfnet {' '.join(f'{name}={place}' for name, place in judge.items())}", f"features={clip['name']}",
        f"runs={folder / 'runs'}", "name=tiny", "--", "trainer.max_steps=3", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false", "data.num_workers=0",
        "data.source.size=64", "data.batch_size=2", "model.lr=1e-2",
    ]  # fmt: skip


def test_the_whole_recipe_on_tiny_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(adaptation, "RESULTS", tmp_path / "results")
    own = words(tmp_path)
    adaptation.main(own)
    found = json.loads((tmp_path / "results/tiny.json").read_text())
    assert list(found["ways"]) == ["base", "marked", "regularized", "unmarked", "adapted"]
    for figures in found["ways"].values():
        assert set(figures) == {"frechet", "hps", "clip", "availability"}
        assert 0 <= figures["availability"]["mean"] <= 1
        assert figures["frechet"]["mean"] > 0
    assert found["selected"]["0"] == {"positive": 4, "negative": 4}
    assert (tmp_path / "results/tiny.jpg").is_file()
    seed = tmp_path / "runs/seed0"
    (sheets := {way: (seed / f"images/{way}/images.csv") for way in found["ways"]})
    pictures = {
        way: [Image.open(file).tobytes() for file in sorted(table.parent.glob("*.png"))]
        for way, table in sheets.items()
    }
    assert all(len(each) == 3 for each in pictures.values())
    assert pictures["unmarked"] != pictures["base"], "it was tuned"
    assert pictures["unmarked"] != pictures["regularized"], "on other images"
    assert pictures["adapted"] != pictures["unmarked"], "the identifier is the negative prompt"
    assert model_config(seed / "adapted/checkpoint")["trainable"] == "unet_lora"
    prompts = (seed / "adapted/config.yaml").read_text()
    assert "identifier: 'Weird image. '" in prompts
    assert (seed / "adapted/checkpoint/adapters/pytorch_lora_weights.safetensors").is_file()

    before, told = (tmp_path / "results/tiny.json").read_bytes(), capsys.readouterr().out
    adaptation.main(own)  # nothing is left to do
    assert (tmp_path / "results/tiny.json").read_bytes() == before
    assert capsys.readouterr().out in told
    with pytest.raises(SystemExit, match="has a run with other options"):
        adaptation.main(["scale=2", *own[:6], *own[7:]])


def test_missing_rewards_are_all_told_before_anything_is_made(tmp_path: Path) -> None:
    own = [f"select=hps checkpoint={tmp_path}/hps", "rewards=clip=clip name=none; looks=aestetic", "judge=null"]
    with pytest.raises(SystemExit) as stop:
        adaptation.main([*own, f"runs={tmp_path}/runs"])
    lines = str(stop.value).splitlines()
    assert lines[0] == "adaptation: these rewards are missing; train them, or name others:"
    assert re.match(r"  clip: reward=clip name=none: CLIP 'none': no folder", lines[1])
    assert re.match(r"  looks: reward=aestetic: .*nearest: aesthetic", lines[2])
    assert re.match(rf"  select: reward=hps checkpoint={tmp_path}/hps: There is no checkpoint folder", lines[3])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [("seed=1", "no option seed; choices: generator"), ("rewards=hps;clip=clip", r"'hps' is not NAME=CHOICE")],
)
def test_wrong_options_are_told(word: str, told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        adaptation.main([word])


class Redness(Reward):
    """The mean of the red channel."""

    fields = frozenset()
    threshold = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.freeze()

    def score(self, images: torch.Tensor, batch: dict) -> Score:
        return Score(images[:, 0].mean(dim=(1, 2)), {})


def test_measures_by_hand(tmp_path: Path) -> None:
    reds = (0, 51, 255)
    for number, red in enumerate(reds):
        Image.new("RGB", (32 + 8 * number, 32), (red, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "images.csv").write_text("image,prompt\n0.png,a\n1.png,b\n2.png,c\n")
    (tmp_path / "net").mkdir()
    net, cpu = feature_net(nets.clip(tmp_path / "net")["name"]), torch.device("cpu")
    reference = torch.rand(20, 16)
    found = measured(tmp_path / "images.csv", {"red": Redness(), "availability": Redness()}, net, reference, cpu, 2)
    assert found["red"] == pytest.approx((0 + 0.2 + 1) / 3)
    assert found["availability"] == pytest.approx(1 / 3)
    assert found["frechet"] > 0
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"images\.csv, row 2 \(1\.png\): .*1\.png: no such file"):
        measured(tmp_path / "images.csv", {}, net, reference, cpu)


def test_figures_are_means_over_seeds_and_a_benchmark_that_was_not_run_has_dashes() -> None:
    runs = {str(seed): {"base": {"hps": value}} for seed, value in enumerate((0.1, 0.3))}
    found = adaptation.summary(runs)
    assert found["base"]["hps"] == {"mean": pytest.approx(0.2), "sd": pytest.approx(0.1414, abs=1e-4)}
    assert adaptation.summary({"0": {"base": {"hps": 0.1}}})["base"]["hps"] == {"mean": 0.1}
    assert f"{report.NotRun()['ways']['base']:adaptation}" == "- | - | - | - | -"
    assert f"{report.NotRun()['date']}" == "-"
