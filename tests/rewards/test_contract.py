"""What every reward in conf/reward/ keeps to. A new YAML is found here; `tests/rewards/tiny.py` makes its tiny nets."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from src.build import build
from src.config import CONF
from src.data.batch import Batch
from src.rewards.base import Reward
from tests.rewards import tiny

FILES = sorted((CONF / "reward").glob("*.yaml"))
SHIPPED = {file.stem for file in FILES if (CONF.parent / "checkpoints" / file.stem / "model.safetensors").is_file()}
SIZE = (40, 32)


NAMES = [*(file.stem for file in FILES), *(f"{name} (shipped)" for name in sorted(SHIPPED))]


@pytest.fixture(scope="module", params=NAMES)
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reward:
    """The reward of a YAML, on tiny fresh nets or on those that ship."""
    name, _, shipped = request.param.partition(" ")
    node = OmegaConf.load(CONF / "reward" / f"{name}.yaml")
    if shipped:
        folder = CONF.parent
        node = {key: str(folder / v) if str(v).startswith("checkpoints/") else v for key, v in node.items()}  # type: ignore
        return build(node)
    make = getattr(tiny, name, None)
    assert make, f"write tests/rewards/tiny.py: {name}(folder), the arguments that put tiny nets into {name}.yaml"
    return build(OmegaConf.merge(node, make(tmp_path_factory.mktemp(name))))


def inputs(rows: int = 3, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, Batch]:
    noise = torch.Generator().manual_seed(0)
    batch: Batch = {"key": [f"ad{i}" for i in range(rows)]}
    for field, channels in (("product", 4), ("depth", 1), ("saliency", 1)):
        batch[field] = torch.rand(rows, channels, *size, generator=noise)
    for field in ("title", "prompt"):
        batch[field] = [" ".join(["oak", "chair", "49", "cm", "brown"][: 1 + i % 5]) for i in range(rows)]
    return torch.rand(rows, 3, *size, generator=noise), batch


def taken(batch: Batch, rows: list[int]) -> Batch:
    return {f: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows] for f, v in batch.items()}


def test_value_and_parts_are_finite_float32_rows(reward: Reward) -> None:
    score = reward(*inputs())
    for values in (score.value, *score.parts.values()):
        assert values.shape == (3,)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
    assert (score.value <= reward.highest).all()
    assert set(score.maps) == set(reward.heat_maps)
    for heat in score.maps.values():
        assert heat.ndim == 3
        assert len(heat) == 3
        assert heat.dtype == torch.float32
        assert ((heat >= 0) & (heat <= 1)).all()
    assert score.value.unique().numel() == 3, "three pictures of noise are told apart"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_file_states_the_threshold_of_acceptance_or_that_there_is_none(file: Path) -> None:
    assert "threshold" in OmegaConf.load(file)


def test_its_threshold_can_be_reached(reward: Reward) -> None:
    assert reward.threshold is None or reward.threshold <= reward.highest


def test_float32_under_autocast_and_from_half_pictures(reward: Reward) -> None:
    images, batch = inputs(2)
    whole = reward(images, batch).value
    with torch.autocast("cpu", torch.bfloat16):
        score = reward(images, batch)
    assert {value.dtype for value in (score.value, *score.parts.values())} == {torch.float32}
    torch.testing.assert_close(score.value, whole, atol=0.3, rtol=0.1)
    assert reward(images.bfloat16(), batch).value.dtype == torch.float32


def test_gradient_reaches_every_picture_and_no_weight(reward: Reward) -> None:
    images, batch = inputs()
    images.requires_grad_()
    reward(images, batch).value.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).abs().amax(dim=1) > 0).all()
    assert not any(weight.requires_grad or weight.grad is not None for weight in reward.parameters())


def test_gradient_after_a_no_grad_call_under_the_same_autocast(reward: Reward) -> None:
    images, batch = inputs(2)
    images.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            reward(images, batch)
        reward(images, batch).value.sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_the_gradient_points_uphill(reward: Reward) -> None:
    images, batch = inputs(2)
    images.requires_grad_()
    before = reward(images, batch).value
    (gradient,) = torch.autograd.grad(before.sum(), images)
    norm = gradient.flatten(1).norm(dim=1)
    step = 0.01 * gradient / norm.clamp_min(1e-12)[:, None, None, None]
    with torch.no_grad():
        after = reward(images + step, batch).value
    assert (after > before).all()


def test_eval_mode_for_good(reward: Reward) -> None:
    images, batch = inputs()
    before = reward(images, batch).value
    parent = torch.nn.ModuleList([reward]).train()
    assert parent.training
    assert not any(module.training for module in reward.modules())
    state = {name: value.clone() for name, value in reward.state_dict().items()}
    assert torch.equal(reward(images, batch).value, before), "deterministic, and unchanged by train()"
    assert all(torch.equal(value, state[name]) for name, value in reward.state_dict().items())


def test_rows_are_independent(reward: Reward) -> None:
    images, batch = inputs(4)
    value = reward(images, batch).value
    for i in range(4):
        alone = reward(images[i : i + 1], taken(batch, [i])).value
        torch.testing.assert_close(alone, value[i : i + 1], atol=1e-4, rtol=1e-4)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(reward(images[order], taken(batch, order)).value, value[order], atol=1e-4, rtol=1e-4)


def test_copies_are_scored_alike_and_so_is_a_row_beside_long_texts(reward: Reward) -> None:
    images, batch = inputs(1)
    alone = reward(images, batch).value
    for copies in (2, 5):
        values = reward(images.repeat(copies, 1, 1, 1), taken(batch, [0] * copies)).value
        torch.testing.assert_close(values, alone.repeat(copies), atol=1e-5, rtol=1e-5)
    others, more = inputs(3)
    others = torch.cat([images, others[1:]])
    beside: Batch = {field: [*batch[field], *more[field][1:]] for field in ("title", "prompt")}
    beside |= {field: torch.cat([batch[field], more[field][1:]]) for field in batch if field not in ("key", *beside)}
    for field in ("title", "prompt"):
        beside[field][1] = "oak chair 49 cm " * 18
    torch.testing.assert_close(reward(others, beside).value[:1], alone, atol=1e-5, rtol=1e-5)


def test_no_graph_without_gradient(reward: Reward) -> None:
    images, batch = inputs(1)
    scores = [reward(images, batch)]
    with torch.no_grad():
        scores.append(reward(images.requires_grad_(), batch))
    assert all(values.grad_fn is None for score in scores for values in (score.value, *score.parts.values()))
    assert reward(images, batch).value.grad_fn is not None


def test_a_file_a_pil_image_and_tensors_have_one_value(reward: Reward, tmp_path: Path) -> None:
    images, batch = inputs(1)
    levels = (images[0] * 255).round().byte()
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "a.png")
    fields = {field: batch[field][0] for field in reward.fields}
    kinds = (tmp_path / "a.png", str(tmp_path / "a.png"), picture, levels, levels.float() / 255)
    values = {reward.rate(kind, **fields) for kind in kinds}
    assert len(values) == 1
    assert values == {float(reward(levels[None] / 255, batch).value)}


@pytest.mark.parametrize("size", [(16, 16), (33, 71), (150, 90)])
def test_any_size(reward: Reward, size: tuple[int, int]) -> None:
    images, batch = inputs(2, size)
    images.requires_grad_()
    value = reward(images, batch).value
    value.sum().backward()
    assert value.isfinite().all()
    assert images.grad is not None
    assert images.grad.shape == images.shape
    assert images.grad.isfinite().all()


def test_pictures_and_fields_of_different_sizes(reward: Reward) -> None:
    images, _ = inputs(2, (48, 48))
    _, batch = inputs(2, (96, 96))
    assert reward(images, batch).value.isfinite().all()


def test_only_its_fields_are_read_and_each_is_needed(reward: Reward) -> None:
    images, batch = inputs(2)
    own = {field: batch[field] for field in reward.fields}
    kept = {field: v.clone() if isinstance(v, torch.Tensor) else list(v) for field, v in own.items()}
    assert torch.equal(reward(images, own).value, reward(images, batch | {"image": 1 - images}).value)
    for field in reward.fields:
        less = {name: value for name, value in own.items() if name != field}
        with pytest.raises(ValueError, match=rf"needs the field {field}; the batch has"):
            reward(images, less)
        with pytest.raises(ValueError, match=rf"1 rows of {field} for 2 images"):
            reward(images, own | {field: own[field][:1]})
        same = own[field] == kept[field]
        assert same.all() if isinstance(same, torch.Tensor) else same, f"{field} was changed in place"


def test_pictures_that_are_none_are_refused(reward: Reward) -> None:
    images, batch = inputs(2)
    for wrong in (images[0], images[:, :1], (images * 255).byte()):
        with pytest.raises(ValueError, match=r"not float \(batch, 3, height, width\)"):
            reward(wrong, batch)
    for wrong in (255 * images, 2 * images - 1):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], these are in \["):
            reward(wrong, batch)


def test_the_yaml_lies_where_commands_find_it() -> None:
    assert FILES
    assert all(Path(file).read_text(encoding="utf-8").startswith("#") for file in FILES), "--help shows the first line"
