"""The showroom as a data source: images drawn on demand, the same for the same (seed, index), kept on disk."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from src.data.batch import CLASSES, FIELDS, Record
from src.data.showroom import feedback, text
from src.data.showroom.draw import paint
from src.data.showroom.scene import Scene, scene
from src.data.splits import SPLITS, Source, Split
from src.runtime.files import atomic

GROUPS = (2, 3, 4)  # sizes of successive groups of tries at one brief, over and over


class Showroom(Source):
    """The embedded world (synthetic): every field there is, in splits that share neither product nor room style.

    `num` maps each split to its number of images. `size` is their side in pixels. With `cache` each image is kept
    as one PNG in that folder when it is first drawn and read from there afterwards. `holds` names the fields to make;
    fewer are quicker.
    """

    classes = CLASSES
    about = (
        "synthetic images of rendered CC0 products in procedural rooms; the labels are known by construction. The "
        "splits share neither products nor room styles."
    )

    def __init__(
        self,
        num: Mapping[str, int],
        size: int = 128,
        seed: int = 0,
        cache: str | None = None,
        holds: tuple[str, ...] | list[str] = tuple(FIELDS),
    ) -> None:
        unknown = [name for name in holds if name not in FIELDS]
        if unknown:
            raise ValueError(f"showroom holds no field {unknown[0]!r}; it has {', '.join(FIELDS)}")
        self.num, self.size, self.seed, self.cache = dict(num), size, seed, cache
        self.fields = frozenset(holds)

    def split(self, name: str) -> "ShowroomSplit":
        """The images of "train", "val" or "test"."""
        if name not in self.num:
            raise ValueError(f"showroom has no split {name!r}; it has {', '.join(self.num)}")
        return ShowroomSplit(name, self.num[name], self.size, self.seed, self.cache, self.fields)

    def fingerprint(self) -> str:
        """Of the code and sprites of the world."""
        return _fingerprint()


def group_of(index: int) -> tuple[int, int, int]:
    """(group, member, size of the group) of an image."""
    block, rest = divmod(index, sum(GROUPS))
    for i, size in enumerate(GROUPS):
        if rest < size:
            return block * len(GROUPS) + i, rest, size
        rest -= size
    raise AssertionError("unreachable")


class ShowroomSplit(Split):
    """One split of the showroom. A record is a pure function of (seed, index)."""

    def __init__(self, split: str, num: int, size: int, seed: int, cache: str | None, fields: frozenset[str]) -> None:
        self.name, self.num, self.size, self.seed, self.fields = split, num, size, seed, fields
        self.folder = Path(cache) / f"{split}-{size}px-seed{seed}-{_fingerprint()}" if cache else None

    def __len__(self) -> int:
        return self.num

    @property
    def groups(self) -> np.ndarray:
        """The group of every image, int64 (images,)."""
        return np.array([group_of(index)[0] for index in range(self.num)], np.int64)

    def scene(self, index: int) -> Scene:
        """The scene of image `index`."""
        if not 0 <= index < self.num:
            raise IndexError(index)
        group, member, _ = group_of(index)
        return scene(self.seed, self.name, group, member)

    def utilities(self, group: int, size: int) -> np.ndarray:
        """The overall quality of each image of a group, (size,), which decides the choices but for chance."""
        tries = [scene(self.seed, self.name, group, member) for member in range(size)]
        return np.array([feedback.qualities(s, CLASSES[s.label])[3] for s in tries])

    def __getitem__(self, index: int) -> Record:
        written, images = self._cached(self.folder, index) if self.folder else self._made(index)
        record: Record = written | images
        record["scores"] = np.array(written["scores"], np.float32)
        if "heatmaps" in self.fields:
            record["heatmaps"] = np.stack([feedback.heat_map(points, self.size) for points in written["marks"]])
        return {name: value for name, value in record.items() if name in self.fields or name == "key"}

    def _made(self, index: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All that is written about image `index`, in plain JSON types, and its painted maps."""
        what = self.scene(index)
        group, member, size = group_of(index)
        label = CLASSES[what.label]
        painted = paint(what, self.size)
        flaw = painted.pop("flaw")[0] > 100
        rng = np.random.default_rng((self.seed, SPLITS.index(self.name), index, 77))
        liked = self.utilities(group, size)
        ranks = feedback.ranking(liked, np.random.default_rng((self.seed, SPLITS.index(self.name), group, 78)))
        written = {
            "key": f"{self.name}-{index:07d}",
            "prompt": text.prompt(what.brief),
            "title": text.title(what.brief),
            "label": what.label,
            "group": group,
            "chosen": float(ranks[member] == 1),
            "rank": float(ranks[member]),
            "weight": 1.0,
            "scores": feedback.scores(what, label, rng).tolist(),
            "aligned_words": feedback.aligned_words(what, rng),
            "clicked": bool(rng.random() < feedback.click_rate(what, float(liked[member]))),
            "marks": [feedback.marks(flaw, rng), feedback.marks(_contradicted(what, painted), rng, 0.8)],
        }
        return written, painted

    def _cached(self, folder: Path, index: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The same from one PNG: three panels (image; product; depth, saliency, product alpha) and a text chunk."""
        path = folder / f"{index // 1000:04d}" / f"{index:07d}.png"
        if path.exists():
            with PngImageFile(path) as file:
                panels = np.asarray(file)
                written = json.loads(file.text["record"])
            image, colour, maps = (p.transpose(2, 0, 1) for p in np.split(panels, 3, 1))
            product = np.concatenate([colour, maps[2:]])
            return written, {"image": image, "product": product, "depth": maps[:1], "saliency": maps[1:2]}
        written, made = self._made(index)
        maps = np.concatenate([made["depth"], made["saliency"], made["product"][3:]])
        panels = np.concatenate([made["image"], made["product"][:3], maps], 2).transpose(1, 2, 0)
        note = PngInfo()
        note.add_text("record", json.dumps(written))
        with atomic(path, shared=True) as part:
            Image.fromarray(np.ascontiguousarray(panels)).save(part, "PNG", compress_level=1, pnginfo=note)
        return written, made


def _contradicted(what: Scene, painted: dict[str, np.ndarray]) -> np.ndarray:
    """Where the image shows a wall or floor that the prompt did not ask for, (size, size) bool."""
    said, shown = what.brief.setting, what.setting
    free = painted["product"][3] < 128
    low = np.arange(free.shape[0])[:, None] > free.shape[0] * 0.6
    wall = (said.wall, said.pattern) != (shown.wall, shown.pattern)
    floor = said.floor != shown.floor or what.fault == "own_colours"
    return free & ((wall & ~low) | (floor & low))


@functools.cache
def _fingerprint() -> str:
    """Eight characters that change whenever the world's code or sprites do, so that no stale cache is read."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((CLASSES, SPLITS)).encode())
    others = ("render_sprites", "figure", "tokenizer", "ceiling")
    drawing = [path for path in sorted(here.glob("*.py")) if path.stem not in others]
    drawing += [here / "catalogue.csv"]
    for path in [*drawing, *sorted(here.glob("sprites/*.webp")), *sorted(here.glob("sprites/*.json"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
