"""RewardAugmentation of a picture: what moves, what is repeated, and that gradients pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.models.rfft.reward_augmentation import RewardAugmentation, shifted


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def chances(rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + row) for row in range(rows)]


def fields(rows: int) -> dict:
    return {"product": torch.rand(rows, 4, 12, 10), "title": [f"chair {i}" for i in range(rows)]}


def test_no_views_is_the_picture_itself():
    pictures, batch = torch.rand(2, 3, 12, 10), fields(2)
    seen, moved = RewardAugmentation(0)(pictures, batch, chances(2))
    assert seen is pictures
    assert moved is batch


@settings(max_examples=20, deadline=None)
@given(across=st.integers(-3, 3), down=st.integers(-3, 3))
def test_a_shift_by_whole_pixels_is_a_roll_inside(across: int, down: int):
    picture = torch.rand(1, 3, 12, 10)
    moved = shifted(picture, torch.tensor([[float(across), float(down)]]), "zeros")
    rolled = picture.roll((down, across), (2, 3))
    torch.testing.assert_close(moved[..., 3:-3, 3:-3], rolled[..., 3:-3, 3:-3], atol=1e-5, rtol=1e-5)
    if across > 0:
        assert moved[..., :across].abs().max() == 0


def test_views_move_picture_and_product_alike_and_keep_the_words_in_order():
    product = fields(3)["product"]
    batch = {"product": product, "title": ["a", "b", "c"]}
    seen, moved = RewardAugmentation(2, shift=3, blur=0, noise=0)(product[:, :3], batch, chances(3))
    assert seen.shape == (6, 3, 12, 10)
    assert moved["title"] == ["a", "b", "c"] * 2
    torch.testing.assert_close(seen[..., 4:-4, 4:-4], moved["product"][:, :3, 4:-4, 4:-4])
    assert not torch.allclose(seen[:3], seen[3:])
    assert not torch.allclose(seen[0, :, 4:-4, 4:-4], product[0, :3, 4:-4, 4:-4])


def test_noise_and_blur_are_as_strong_as_said():
    flat = torch.full((1, 3, 64, 64), 0.5)
    spread = torch.stack(
        [RewardAugmentation(1, shift=0, blur=0, noise=0.1)(flat, {}, chances(1, i))[0].std() for i in range(50)]
    )
    assert 0.08 < spread.max() < 0.102
    noisy = torch.rand(1, 3, 64, 64)
    softer = torch.stack(
        [RewardAugmentation(1, shift=0, blur=1.0, noise=0)(noisy, {}, chances(1, i))[0].std() for i in range(20)]
    )
    assert softer.min() < 0.5 * noisy.std() < softer.max()


def test_views_of_a_picture_do_not_depend_on_its_batch():
    pictures, batch = torch.rand(3, 3, 12, 10), fields(3)
    whole, moved = RewardAugmentation(2)(pictures, batch, chances(3))
    alone, moved_alone = RewardAugmentation(2)(pictures[1:2], {k: v[1:2] for k, v in batch.items()}, chances(3)[1:2])
    torch.testing.assert_close(alone, whole[[1, 4]])
    torch.testing.assert_close(moved_alone["product"], moved["product"][[1, 4]])


def test_under_bf16_a_view_is_as_exact_as_without():
    pictures, batch = torch.rand(2, 3, 64, 64), fields(2)
    plain, _ = RewardAugmentation(2)(pictures, batch, chances(2))
    with torch.autocast("cpu", torch.bfloat16):
        seen, _ = RewardAugmentation(2)(pictures, batch, chances(2))
    assert seen.dtype == torch.float32
    assert torch.equal(seen, plain)


def test_gradients_reach_the_picture_through_every_view():
    pictures = torch.rand(2, 3, 12, 10, requires_grad=True)
    seen, _ = RewardAugmentation(3, shift=2)(pictures, fields(2), chances(2))
    seen.sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad.abs() > 0).float().mean() > 0.9


def test_refuses_by_name():
    with pytest.raises(ValueError, match=r"reward_augmentation: shift=-1 must not be negative"):
        RewardAugmentation(1, shift=-1)
