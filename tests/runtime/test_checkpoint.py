import json
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from src.models.perception.system import Saliency
from src.runtime import checkpoint

CONFIG = {"_target_": "src.models.perception.system.Saliency", "size": "tiny", "image_size": 32}
ABOUT = {part: f"the {part}" for part in checkpoint.ABOUT} | {"licence": "Apache-2.0"}


@pytest.fixture(scope="module")
def system() -> Saliency:
    torch.manual_seed(0)
    return Saliency(size="tiny", image_size=32).eval()


@pytest.fixture
def folder(tmp_path, system):
    with pytest.warns(UserWarning, match=r"^test/f is nan; stored as null\.$"):
        checkpoint.save(tmp_path / "saliency", system, CONFIG, {"test/mae": 0.25, "test/f": float("nan")}, ABOUT)
    return tmp_path / "saliency"


def test_a_loaded_system_gives_the_same_maps(folder, system):
    before = torch.get_rng_state()
    loaded = checkpoint.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    pictures = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), system(pictures))


def test_float16_halves_the_file_and_loads_as_float32(tmp_path, folder, system):
    checkpoint.save(tmp_path / "half", system, CONFIG, {}, ABOUT, dtype="float16")
    sizes = [(place / checkpoint.WEIGHTS).stat().st_size for place in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = checkpoint.load(tmp_path / "half")
    assert isinstance(loaded, Saliency)
    for key, value in loaded.net.state_dict().items():
        own = system.net.state_dict()[key]
        assert value.dtype == own.dtype
        torch.testing.assert_close(value, own, rtol=1e-3, atol=1e-4)


def test_the_card_and_metrics_say_what_they_were_given(folder):
    card = (folder / checkpoint.CARD).read_text()
    for part, text in ABOUT.items():
        assert text in card, part
    assert "license: apache-2.0" in card
    assert "| test/mae | 0.25 |" in card
    assert "| test/f | - |" in card
    assert json.loads((folder / checkpoint.METRICS).read_text()) == {"test/mae": 0.25, "test/f": None}


def test_metrics_are_there_only_when_all_the_rest_is(folder):
    class Torn(Saliency):
        own_layout = True

        def save_weights(self, folder, dtype):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(folder, Torn(size="tiny", image_size=32), CONFIG, {"test/mae": 0.5}, ABOUT)
    assert not (folder / checkpoint.METRICS).exists()
    checkpoint.save(folder, Saliency(size="tiny", image_size=32), CONFIG, {"test/mae": 0.5}, ABOUT)
    assert json.loads((folder / checkpoint.METRICS).read_text()) == {"test/mae": 0.5}


def test_non_finite_weights_are_rejected_before_anything_is_written(tmp_path):
    class Own(Saliency):
        own_layout = True

        def save_weights(self, folder, dtype):
            raise AssertionError("written")

    system = Own(size="tiny", image_size=32)
    with torch.no_grad():
        next(system.net.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match=r"does not fit torch\.float16; nothing was saved"):
        checkpoint.save(tmp_path / "net", system, CONFIG, {}, ABOUT, "float16")
    assert not (tmp_path / "net").exists()


def test_the_licence_is_that_of_the_folders_card(folder, tmp_path):
    assert checkpoint.licence_of(folder) == ABOUT["licence"]
    card = folder / checkpoint.CARD
    card.write_text(card.read_text().replace("license: apache-2.0", "license: cc-by-nc-4.0"))
    assert checkpoint.licence_of(folder) == "cc-by-nc-4.0"
    told = "Other: that of someone/painter, from whose weights these were trained."
    assert checkpoint.licence_of("someone/painter") == told
    assert checkpoint.licence_of("/home/me/someone") == told.replace("someone/painter", "someone")
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0", "license: other"))
    assert checkpoint.licence_of(folder).startswith("Other: that of ")


def test_assets_make_the_folder_whole_wherever_it_lies(tmp_path):
    class WithFile(Saliency):
        def assets(self, folder):
            (folder / "words.txt").write_text("oak")
            return {"size": "./words.txt"}

    checkpoint.save(tmp_path / "a", WithFile(size="tiny", image_size=32), CONFIG, {}, ABOUT)
    (tmp_path / "a").rename(tmp_path / "b")
    assert OmegaConf.load(tmp_path / "b/config.yaml").model.size == "./words.txt"
    assert checkpoint.model_config(tmp_path / "b")["size"] == str(tmp_path / "b/words.txt")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}.*{name} is missing"):
        checkpoint.load(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weight_file_is_named(folder, kept):
    file = folder / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is truncated"):
        checkpoint.load(folder)


def test_foreign_missing_and_misshapen_weights_are_named(folder):
    file = folder / checkpoint.WEIGHTS
    state = load_file(file)
    first, second, *_ = sorted(state)
    del state[first]
    state[second] = torch.zeros(1, 2, 3)
    state["colour"] = torch.zeros(1)
    save_file(state, file)
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        checkpoint.load(folder)
    for part in (f"lacks {first}", "unknown colour", f"{second} (1, 2, 3) instead of"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", "is not readable YAML"),
        ("modle: {}", "has no model"),
        ("model: {_target_: os.system, command: ls}", "'os.system' is not under src"),
        ("model: {_target_: src.models.perception.system.Saliency, colour: red}", "colour"),
        (
            "model: {_target_: src.data.batch.collate, records: [{key: a}]}",
            "is not allowed in a checkpoint configuration",
        ),
    ],
)
def test_an_unusable_configuration_is_named(folder, text, message):
    (folder / checkpoint.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / checkpoint.CONFIG))}.*{re.escape(message)}"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"_target_": "src.data.rf1m.write_example", "root": "OUT"}, "rf1m.write_example is not allowed in"),
        ({"_target_": "src.runtime.checkpoint.save", "folder": "OUT"}, "checkpoint.save is not allowed in"),
        (CONFIG | {"size": {"_target_": "src.data.rf1m.write_example", "root": "OUT"}}, "is not allowed in"),
        (CONFIG | {"size": [{"_target_": "src.data.products.write_example", "out": "OUT"}]}, "is not allowed in"),
        ({"_target_": "shutil.rmtree", "path": "OUT"}, "'shutil.rmtree' is not under src."),
        (CONFIG | {"size": "${oc.env:HOME}"}, "'${oc.env:HOME}' is an interpolation"),
    ],
)
def test_a_foreign_configuration_builds_nothing_but_systems_and_reads_no_environment(folder, tmp_path, model, told):
    out = tmp_path / "out"
    text = json.dumps({"model": model}).replace("OUT", str(out))  # JSON is YAML
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(told)):
        checkpoint.load(folder)
    assert not out.exists()


def test_a_configuration_may_load_another_folder(folder):
    config = folder.parent / "config.yaml"
    config.write_text(json.dumps({"model": {"_target_": "src.runtime.checkpoint.load", "folder": str(folder)}}))
    (folder.parent / checkpoint.WEIGHTS).write_bytes((folder / checkpoint.WEIGHTS).read_bytes())
    assert isinstance(checkpoint.load(folder.parent), Saliency)


def test_no_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint folder .*nowhere"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_card_without_a_text_and_a_weight_that_does_not_fit_are_refused(tmp_path, system):
    with pytest.raises(ValueError, match="card lacks limits"):
        checkpoint.save(tmp_path / "a", system, CONFIG, {}, ABOUT | {"limits": ""})
    large = Saliency(size="tiny", image_size=32)
    name, weight = next(iter(large.net.named_parameters()))
    for value, why in ((1e6, "does not fit"), (float("nan"), "is not finite")):
        torch.nn.init.constant_(weight, value)
        with pytest.raises(ValueError, match=f"{name} {why}"):
            checkpoint.save(tmp_path / "a", large, CONFIG, {}, ABOUT, dtype="float16")
    assert not (tmp_path / "a").exists()


class Touch:
    """A pickle that would run code."""

    def __reduce__(self):
        return (open, ("touched", "w"))


def test_foreign_pickles_are_read_with_weights_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    assert checkpoint.read_weights(tmp_path / "good.pt")["a"].tolist() == [1, 1]
    torch.save({"a": Touch()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read as plain weights"):
        checkpoint.read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "touched").exists()


def test_a_shipped_folder_is_found_from_any_working_folder_but_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.located("checkpoints/depth") == checkpoint.ROOT / "checkpoints/depth"
    assert checkpoint.load("checkpoints/depth").net is not None
    (tmp_path / "checkpoints/depth").mkdir(parents=True)
    assert checkpoint.located("checkpoints/depth") == Path("checkpoints/depth")
    assert checkpoint.located("Intel/dpt-large") == Path("Intel/dpt-large")


def test_configurations_that_load_themselves_are_refused(tmp_path):
    for name, other in (("a", "./"), ("b", "../c"), ("c", "../b")):
        (tmp_path / name).mkdir()
        node = {
            "_target_": "src.runtime.checkpoint.load",
            "folder": other if other == "./" else str(tmp_path / name / other),
        }
        (tmp_path / name / "config.yaml").write_text(json.dumps({"model": node}))
    for name in ("a", "b", "a"):
        with pytest.raises(ValueError, match=r"config\.yaml: the configuration loads its own folder"):
            checkpoint.load(tmp_path / name)
