"""The texts of an image: the prompt, the words of it that came true, and the shop's title."""

import numpy as np

from src.data.showroom.rooms import COLOURS
from src.data.showroom.scene import Brief, Scene, nearest_colour
from src.data.showroom.sprites import catalogue
from src.data.words import split_words

BRANDS = (
    "Nordhem", "Casa Lume", "Velora", "Oakline", "Brixmoor", "Haus & Co", "Lindqvist", "Mirelle", "Tavola", "Kestrel",
    "Umbra Vale", "Fjordal", "Solenne", "Ardenne",
)  # fmt: skip
PRAISE = (
    "Free Shipping", "New Arrival", "2026 Edition", "Best Seller", "Official Store", "Hot Sale", "Top Quality",
    "Limited Offer", "Gift Idea", "Easy Assembly",
)  # fmt: skip
VERSION_WORDS = {"miniature": ("miniature", "toy", "dollhouse"), "giant": ("giant", "oversized", "jumbo")}
NOUNS = {"floor": "floor", "table": "table top"}
PATTERN_WORDS = {
    "plain": "painted", "tiled": "tiled", "papered": "dotted", "panelled": "panelled", "striped": "striped",
    "boarded": "boarded", "brick": "brick",
}  # fmt: skip


def prompt(plan: Brief) -> str:
    """The prompt of a brief: what the background should be."""
    what = plan.setting
    light = {"warm": "warm light", "soft": "soft light", "cool": "cool daylight"}[what.light]
    return (
        f"product photo of a {plan.name} in a {what.style} room, {what.wall} {PATTERN_WORDS[what.pattern]} wall, "
        f"{what.floor} {NOUNS[plan.surface]}, {light}, next to a {what.prop}"
    )


def truths(scene: Scene) -> list[int]:
    """For each word of the prompt, 1 if the image follows it and 0 if it is contradicted."""
    said, shown = scene.brief.setting, scene.setting
    shown_items = {prop.item for prop in scene.props}
    parts = [
        (f"product photo of a {scene.brief.name} in a {said.style} room", True),
        (said.wall, said.wall == shown.wall),
        (PATTERN_WORDS[said.pattern], said.pattern == shown.pattern),
        ("wall", True),
        (said.floor, said.floor == shown.floor and scene.fault != "own_colours"),
        (NOUNS[scene.brief.surface], True),
        ("cool daylight" if said.light == "cool" else f"{said.light} light", said.light == shown.light),
        ("next to a", True),
        (said.prop, any(item.name == said.prop and item.item in shown_items for item in catalogue())),
    ]
    return [int(true) for phrase, true in parts for _ in split_words(phrase)]


def title(plan: Brief) -> str:
    """The shop's title: brand and praise, which say nothing, around attributes that are true of the product."""
    rng = np.random.default_rng(plan.rng)
    item = plan.item
    width, depth, height = (max(1, round(v * plan.factor)) for v in (item.width_cm, item.depth_cm, item.height_cm))
    ordinary = plan.factor / plan.version_factor
    size = "large " if ordinary > 1.2 else "small " if ordinary < 0.83 else ""
    if plan.version:  # said by a word, by the measures, or by both
        size = f"{rng.choice(VERSION_WORDS[plan.version])} " if rng.random() < 0.8 else ""
    colour = plan.dye or nearest_colour(plan.colour)
    noun = f"{size}{item.material} {item.name}" if rng.random() < 0.6 else f"{size}{item.name}"
    measure = f"{width}x{depth}x{height} cm"
    place = {"floor": "for the floor", "table": "for the table"}[plan.surface] if rng.random() < 0.3 else ""
    measures = measure if rng.random() < 0.9 or (plan.version and not size) else ""
    parts = [measures, place.title(), colour.title() if colour in COLOURS else ""]
    middle = [p for p in parts if p]
    rng.shuffle(middle)
    noise = [str(word) for word in rng.choice(PRAISE, int(rng.integers(0, 3)), replace=False)]
    brand = [str(rng.choice(BRANDS))] if rng.random() < 0.8 else []
    return " ".join([*brand, noun.title(), *middle, *noise])
