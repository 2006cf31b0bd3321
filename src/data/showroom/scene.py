"""What an image of the showroom shows: drawn at random, before anything is painted.

A *brief* (product, placement, prompt) is shared by a group of two to four images; a *scene* is one try at it, with
the fault, if any, that makes it unusable. Both are pure functions of (seed, split, number).
"""

import functools
import math
from dataclasses import dataclass, field, replace

import numpy as np

from src.data.batch import CLASSES
from src.data.showroom.camera import FOCAL
from src.data.showroom.rooms import COLOURS, LIGHTS, MATERIALS, PATTERNS, STYLES
from src.data.showroom.sprites import Item, catalogue, main_colour, tinted, views
from src.data.splits import SPLITS

FREQUENCIES = (0.56, 0.11, 0.11, 0.11, 0.11)  # of CLASSES
FAULTS = {  # the ways in which each class comes about
    "available": ("none",),
    "space_mismatch": ("floating", "into_wall", "over_edge"),
    "size_mismatch": ("too_large", "too_small"),
    "indistinctiveness": ("own_colours", "clutter"),
    "shape_hallucination": ("legs", "base", "handle", "twin"),
}
DYES = (
    "navy", "teal", "green", "sage", "terracotta", "red", "ochre", "blush", "grey", "charcoal", "cream", "brown",
    "sky blue", "lavender",
)  # fmt: skip
DYEABLE = (
    "fabric", "leather", "plastic", "velvet", "canvas", "suede", "lacquer", "metal", "ceramic", "paper", "glass",
    "plush",
)  # fmt: skip
VERSIONS = {"miniature": (0.26, 0.4), "giant": (2.5, 3.6)}  # real size over the ordinary one
SPECIAL = 0.2  # share of products sold in such a version, which looks like the ordinary one: only its title tells
SPAN = {"floor": (22.0, 420.0), "table": (5.0, 95.0)}  # cm: products that may stand there, of whatever version
MIXED = 0.5  # share of training briefs whose wall, pattern and floor are of any styles, so that none gives away another
CONTRADICTED = 0.1  # share of named attributes that a scene does not follow


@dataclass(frozen=True)
class Setting:
    """The attributes that a prompt names and a scene shows."""

    style: str
    wall: str
    pattern: str
    floor: str
    light: str
    prop: str


@dataclass(frozen=True)
class Brief:
    """Product, placement and prompt. `factor` is the real size over the catalogue's (a large bear, a small barrel).

    `version`: "miniature" or "giant" if the product is a toy or a decoration of that size, "" if it is an ordinary one;
    `version_factor`: its size over the ordinary one, part of `factor`.
    """

    group: int
    item: Item
    view: int
    dye: str | None
    dye_strength: float
    factor: float
    surface: str  # "floor" or "table"
    extent: float  # the product's larger side over the canvas's
    centre: tuple[float, float]  # of its box, in canvas sides
    setting: Setting
    colour: tuple[float, float, float]  # main RGB of the product, [0, 255]
    rng: int  # seeds the words of the title
    version: str = ""
    version_factor: float = 1.0

    @property
    def name(self) -> str:
        """What it is called, such as "miniature sofa"."""
        return f"{self.version} {self.item.name}".strip()


@dataclass(frozen=True)
class Prop:
    """A furnishing: what, which view, where on the support (cm from the product's point), and its dye."""

    item: str
    view: int
    x: float
    z: float
    dye: str | None = None


@dataclass(frozen=True)
class Scene:
    """One try at a brief: what is really shown."""

    brief: Brief
    setting: Setting
    label: int
    fault: str
    severity: float  # 0 to 1, how glaring the fault is
    scale: float  # size of the product in the room's own centimetres, over its true size
    lift: float  # how far the product hangs above the support, in its heights
    wall: float  # cm from the product's point to the wall behind
    props: tuple[Prop, ...]
    window: bool
    picture: bool
    rug: bool
    plinth: bool
    blur: float
    shadow: float
    exposure: float
    rng: int  # seeds the brush: textures' offsets, decor, noise
    wall_colour: tuple[float, float, float] = field(default=(0, 0, 0))
    floor_colour: tuple[float, float, float] | None = None


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(numbers))


def contrast(a: np.ndarray | tuple, b: np.ndarray | tuple) -> float:
    """Difference of two sRGB colours in [0, 255]: luma counts most, hue less."""
    d = np.asarray(a, float) - np.asarray(b, float)
    luma = d @ (0.299, 0.587, 0.114)
    return math.sqrt(luma**2 + 0.4 * (d[0] - luma) ** 2 + 0.4 * (d[2] - luma) ** 2)


@functools.cache
def products(split: str) -> tuple[Item, ...]:
    """The items that may be advertised in `split`."""
    return tuple(item for item in catalogue() if item.role == "product" and item.split == split)


def props(surface: str) -> list[Item]:
    """The common props that may stand on the surface."""
    return [item for item in catalogue() if item.role == "prop" and item.surface in (surface, "both")]


@functools.cache
def furnishings(split: str, surface: str) -> tuple[Item, ...]:
    """The items that may stand about in `split`: the common props and the split's own products, of sensible size."""
    usual = [i for i in catalogue() if i.split in ("all", split) and i.surface == surface]
    return tuple(i for i in usual if max(i.width_cm, i.depth_cm) < (130 if surface == "floor" else 45))


@functools.lru_cache(64)
def brief(seed: int, split: str, group: int) -> Brief:
    """The brief of a group."""
    rng = _generator(seed, SPLITS.index(split), group, 0)
    choices = products(split)
    item = choices[rng.integers(len(choices))]
    largest = max(item.width_cm, item.height_cm)
    surface, factor = item.surface, 1.0
    if surface == "both":  # things that are sold in several sizes; the size says where such a thing stands
        factor = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
        surface = "table" if largest * factor < 45 else "floor"
    version, version_factor = _version(_generator(seed, SPLITS.index(split), group, 1 << 20), largest * factor, surface)
    number = len(views(item.item))
    view = int(rng.integers(number))
    dye, strength = None, 0.0
    if item.material in DYEABLE and rng.random() < 0.6:
        dye, strength = str(rng.choice(DYES)), float(rng.uniform(0.7, 0.95))
    rgba = views(item.item)[view].rgba
    colour = main_colour(tinted(rgba, COLOURS[dye], strength) if dye else rgba)
    names = [name for name, style in STYLES.items() if style.split == split]
    style = str(rng.choice(names))
    mixed = split == "train" and _generator(seed, SPLITS.index(split), group, 1 << 21).random() < MIXED
    what = [STYLES[name] for name in (names if mixed else [style])]
    walls = tuple(dict.fromkeys(wall for style in what for wall in style.walls))
    patterns = tuple(dict.fromkeys(pattern for style in what for pattern in style.patterns))
    supports = tuple(dict.fromkeys(m for style in what for m in (style.floors if surface == "floor" else style.tables)))
    wall = _apart(rng, walls, {c: COLOURS[c] for c in walls}, colour)
    floor = _apart(rng, supports, {m: MATERIALS[m][1] for m in supports}, colour)
    common = props(surface)
    prop = common[rng.integers(len(common))]
    return Brief(
        group=group,
        item=item,
        view=view,
        dye=dye,
        dye_strength=strength,
        factor=factor * version_factor,
        surface=surface,
        extent=float(rng.uniform(0.42, 0.66)),
        centre=(float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.52, 0.62))),
        setting=Setting(style, wall, str(rng.choice(patterns)), floor, str(rng.choice(list(LIGHTS))), prop.name),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        rng=int(rng.integers(2**31)),
        version=version,
        version_factor=version_factor,
    )


def _version(rng: np.random.Generator, largest: float, surface: str) -> tuple[str, float]:
    """A share SPECIAL of the products are miniatures or giants, as far as these may stand on the surface."""
    low, high = SPAN[surface]
    if rng.random() >= SPECIAL:
        return "", 1.0
    sizes = {name: float(np.exp(rng.uniform(*np.log(span)))) for name, span in VERSIONS.items()}
    feasible = [name for name, size in sizes.items() if low <= largest * size <= high]
    version = str(rng.choice(feasible)) if feasible else ""
    return version, sizes.get(version, 1.0)


def _apart(
    rng: np.random.Generator, names: tuple[str, ...], colours: dict, own: np.ndarray | tuple, least: float = 54.0
) -> str:
    """One of `names` whose colour stands off from the product's own; the one farthest from it if none does."""
    far = [n for n in names if contrast(colours[n], own) > least]
    return str(rng.choice(far)) if far else max(names, key=lambda n: contrast(colours[n], own))


def scene(seed: int, split: str, group: int, member: int) -> Scene:
    """Try number `member` at the brief of `group`."""
    plan = brief(seed, split, group)
    rng = _generator(seed, SPLITS.index(split), group, 1 + member)
    label = int(rng.choice(len(CLASSES), p=FREQUENCIES))
    ways = [w for w in FAULTS[CLASSES[label]] if w != "over_edge" or plan.surface == "table"]
    fault = str(rng.choice(ways))
    severity = float(rng.uniform(0.35, 1))
    factor = 1.0
    if CLASSES[label] == "size_mismatch":  # as far as the furniture next to it still fits in the image
        true = max(plan.item.width_cm, plan.item.height_cm) * plan.factor
        low, high = SPAN[plan.surface]
        feasible = [w for w in ways if (true * 2.2 <= high if w == "too_large" else true / 2.2 >= low)]
        fault = str(rng.choice(feasible or ways))
        limit = high / true if fault == "too_large" else true / low
        factor = max(2.2, min(2.6 + 1.8 * severity, limit))
        factor = factor if fault == "too_large" else 1 / factor
        if plan.version and rng.random() < 0.8:  # shown as the ordinary product, which it is not
            factor = 1 / plan.version_factor
            fault = "too_large" if factor > 1 else "too_small"
    shown = round(plan.version_factor * factor, 6)  # size in the image over the ordinary one
    real = _contradict(rng, plan, split)
    wall_colour = np.array(COLOURS[real.wall], float) + rng.normal(0, 5, 3)
    floor_colour = np.array(MATERIALS[real.floor][1], float) * rng.uniform(0.92, 1.06)
    if fault == "own_colours":
        own = np.array(plan.colour)
        wall_colour, floor_colour = (
            own + rng.normal(0, 3 + 5 * (1 - severity), 3) + rng.normal(0, 4) for _ in range(2)
        )
        real = replace(real, wall=nearest_colour(wall_colour))
    item = plan.item
    size = plan.factor * factor
    count = int(rng.integers(9, 15)) if fault == "clutter" else int(rng.choice(5, p=(0.06, 0.3, 0.34, 0.2, 0.1)))
    if plan.version or shown != 1:
        count = max(4, count)
    apart = np.array([item.width_cm, item.depth_cm]) * size
    space = float(rng.uniform(0.25, 1.6)) * (70 if plan.surface == "floor" else 18)
    wall = apart[1] * 0.75 + space
    if fault == "clutter" or shown < 1:  # room for many props, or for props larger than the product
        wall += (60 if plan.surface == "floor" else 20) * (2 if shown < 1 else 1)
    if fault == "into_wall":
        wall = -apart.max() * rng.uniform(0.3, 0.8) - (25 if plan.surface == "floor" else 6)
    return Scene(
        brief=plan,
        setting=real,
        label=label,
        fault=fault,
        severity=severity,
        scale=factor,
        lift=float(0.2 + 0.28 * severity * rng.uniform(0.6, 1)) if fault == "floating" else 0.0,
        wall=float(wall),
        props=_furnish(rng, plan, real, split, count, size, wall, fault == "clutter", shown),
        window=bool(rng.random() < 0.3),
        picture=bool(rng.random() < 0.4),
        rug=plan.surface == "floor" and bool(rng.random() < 0.3),
        plinth=label == 0 and bool(rng.random() < 0.1),
        blur=0.0 if fault == "clutter" else float(rng.uniform(0, 1.3)),
        shadow=float(rng.uniform(0.45, 1)),
        exposure=float(rng.uniform(0.88, 1.08)),
        rng=int(rng.integers(2**31)),
        wall_colour=(wall_colour[0], wall_colour[1], wall_colour[2]),
        floor_colour=(floor_colour[0], floor_colour[1], floor_colour[2]),
    )


def nearest_colour(rgb: np.ndarray | tuple) -> str:
    """The name in COLOURS nearest to `rgb`."""
    return min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - rgb) ** 2).sum()))


def _contradict(rng: np.random.Generator, plan: Brief, split: str) -> Setting:
    """The brief's setting with some attributes changed against the prompt."""
    said = plan.setting
    what = [STYLES[name] for name, style in STYLES.items() if style.split == split]
    wrong = rng.random(5) < CONTRADICTED
    real = said
    if wrong[0]:
        walls = tuple(sorted({w for style in what for w in style.walls} - {said.wall}))
        real = replace(real, wall=_apart(rng, walls, COLOURS, plan.colour))
    if wrong[1]:
        seen = {p for style in what for p in style.patterns}
        real = replace(real, pattern=str(rng.choice([p for p in PATTERNS if p in seen and p != said.pattern])))
    if wrong[2]:
        kind = {m for style in what for m in (style.floors if plan.surface == "floor" else style.tables)} - {said.floor}
        real = replace(
            real, floor=_apart(rng, tuple(sorted(kind)), {m: MATERIALS[m][1] for m in MATERIALS}, plan.colour)
        )
    if wrong[3]:
        real = replace(real, light=str(rng.choice([name for name in LIGHTS if name != said.light])))
    if wrong[4]:
        others = [i.name for i in props(plan.surface) if i.name != said.prop]
        real = replace(real, prop=str(rng.choice(others)))
    return real


def _furnish(
    rng: np.random.Generator,
    plan: Brief,
    real: Setting,
    split: str,
    count: int,
    size: float,
    wall: float,
    dense: bool,
    shown: float,
) -> tuple[Prop, ...]:
    """Places `count` props beside and behind the product; the first is the one the setting names.

    `dense`: they may overlap. `shown`: the product's size over that of an ordinary one; if it is not 1, most of each
    prop must lie within the image, and next to a product shown large they are the larger ones, to show its size.
    """
    stock, whole = furnishings(split, plan.surface), shown != 1
    if shown > 1:
        stock = tuple(sorted(stock, key=lambda i: i.width_cm * i.height_cm)[len(stock) // 2 :])
    named = next(i for i in catalogue() if i.name == real.prop)
    chosen = [named] + [stock[rng.integers(len(stock))] for _ in range(count - 1)] if count else []
    own_width, own_depth = plan.item.width_cm * size, plan.item.depth_cm * size
    larger = max(own_width, plan.item.height_cm * size)
    seen, away = 0.5 * larger / plan.extent, FOCAL * larger / plan.extent  # half of the canvas, camera distance
    row = 0 if plan.view < len(views(plan.item.item)) // 2 else 1
    placed: list[tuple[Prop, float, float]] = []
    for item in chosen:
        if item.item == plan.item.item:
            continue
        number = len(views(item.item)) // 2
        for _ in range(48 if whole else 16):
            wide, deep = item.width_cm, item.depth_cm
            aside = (own_width + wide) / 2 * float(rng.uniform(0.2, 1.2) if dense else rng.uniform(0.95, 1.7))
            most = max(wall - deep * 0.6, 0.0) if wall > 0 else 0.6 * own_depth
            least = (own_depth + deep) / 2 * 0.9 if aside < (own_width + wide) / 2 else -0.2 * own_depth
            z = float(rng.uniform(least, max(most, least + 1)))
            edge = seen * (1 + z / away) + (-0.1 if whole else 0.15) * wide
            if aside > edge or (wall > 0 and z > most + 2):
                continue
            x = float(rng.choice((-1, 1))) * aside
            room = 0.25 if dense else 0.5
            if all(abs(x - p.x) > (wide + w) * room or abs(z - p.z) > (deep + d) * room for p, w, d in placed):
                dye = str(rng.choice(DYES)) if item.material in DYEABLE and rng.random() < 0.4 else None
                placed.append((Prop(item.item, row * number + int(rng.integers(number)), x, z, dye), wide, deep))
                break
    return tuple(p for p, _, _ in placed)
