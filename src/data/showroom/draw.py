"""Paints a scene: room, props, shadows, the fault, and last the product; with exact depth and saliency."""

import cv2
import numpy as np

from src.data.showroom.backdrop import room
from src.data.showroom.camera import stand
from src.data.showroom.canvas import Painting, Placed, blend, paste, resize, spread, standing_out, window
from src.data.showroom.growths import extend
from src.data.showroom.rooms import COLOURS, LIGHTS
from src.data.showroom.scene import Prop, Scene
from src.data.showroom.sprites import View, tinted, views

OVERSAMPLING = 1.5  # the room is drawn so many times larger than the image and then reduced


def paint(scene: Scene, size: int) -> dict[str, np.ndarray]:
    """`image` (3), `product` (4), `depth` (1), `saliency` (1) and `flaw` (1), each (channels, size, size) uint8."""
    rng = np.random.default_rng(scene.rng)
    side = round(size * OVERSAMPLING)
    plan = scene.brief
    product = product_of(scene, side)
    thickness = (0.05 + 0.07 * scene.severity) * plan.extent * side if scene.fault == "base" or scene.plinth else 0.0
    drop = scene.lift * product.rgba.shape[0] * plan.extent * 0.8 + thickness
    scale = product.zoom * product.view.pixels_per_cm / (plan.factor * scene.scale)
    anchor = (product.anchor[0], product.anchor[1] + drop)
    camera, (x, z) = stand(side, anchor, scale, product.view.elevation)
    painting = room(scene, camera, x, z, rng)
    solid = product.rgba[..., 3].astype(np.float32) / 255

    far = [p for p in scene.props if p.z > 0]
    for prop in sorted(far, key=lambda p: -p.z):
        _add_prop(painting, scene, prop, x, z)
    if scene.blur > 0.15:
        painting.image = cv2.GaussianBlur(painting.image, (0, 0), scene.blur * OVERSAMPLING / 2)
    _cast(painting, product.view, product.zoom, (anchor[0], anchor[1]), _shadow_strength(scene), 1.0 + 2.5 * scene.lift)
    for prop in sorted((p for p in scene.props if p.z <= 0), key=lambda p: -p.z):
        _add_prop(painting, scene, prop, x, z)
    near = camera.focal / scale
    salience = standing_out(painting.image, product.rgba)
    if scene.fault in ("legs", "base", "handle", "twin") or scene.plinth:
        extend(painting, scene, product, thickness, near, salience, rng)
    if scene.fault == "floating":
        painting.flaw = np.maximum(painting.flaw, _under(solid, max(6, int(drop))))
    elif scene.fault in ("into_wall", "over_edge"):
        painting.flaw = np.maximum(painting.flaw, _under(solid, side // 16))
    elif scene.fault == "own_colours" or scene.fault == "clutter":
        reach = side // 8
        painting.flaw = cv2.dilate(solid, np.ones((reach, reach), np.uint8)) - solid
    span = (product.view.far_cm - product.view.near_cm) * plan.factor * scene.scale
    _add_product(painting, product, near + product.view.near_cm * plan.factor * scene.scale, span, salience)
    return _finish(painting, scene, product, size, rng)


def product_of(scene: Scene, side: int) -> Placed:
    """The brief's product, dyed, on a canvas of `side` pixels."""
    plan = scene.brief
    view = views(plan.item.item)[plan.view]
    rgba = view.rgba if plan.dye is None else tinted(view.rgba, COLOURS[plan.dye], plan.dye_strength)
    return place(view, rgba, plan.extent, plan.centre, side)


def place(scene_view: View, rgba: np.ndarray, extent: float, centre: tuple[float, float], side: int) -> Placed:
    """The product scaled so that its larger side is `extent` canvas sides, its box centred on `centre`."""
    high, wide = rgba.shape[:2]
    zoom = extent * side / max(high, wide)
    small = resize(rgba, max(1, round(wide * zoom)), max(1, round(high * zoom)))
    left, top = round(centre[0] * side - small.shape[1] / 2), round(centre[1] * side - small.shape[0] / 2)
    canvas = np.zeros((side, side, 4), np.uint8)
    paste(canvas, small, left, top)
    anchor = (left + scene_view.anchor[0] * zoom, top + scene_view.anchor[1] * zoom)
    return Placed(canvas, zoom, left, top, anchor, scene_view)


def _shadow_strength(scene: Scene) -> float:
    if scene.fault == "floating":
        return scene.shadow * (0.75 if scene.rng % 2 else 0.0)
    if scene.fault == "into_wall":
        return 0.0
    return scene.shadow * (0.5 if scene.fault == "own_colours" else 1.0)


def _cast(
    painting: Painting, view: View, zoom: float, anchor: tuple[float, float], strength: float, soft: float = 1.0
) -> None:
    """Darkens the support by the item's own rendered shadow."""
    if strength <= 0 or view.shadow.size == 0:
        return
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    small = cv2.resize(view.shadow, None, fx=zoom, fy=zoom, interpolation=way)
    if soft > 1.2:
        small = cv2.GaussianBlur(small, (0, 0), 1.5 * soft)
    left, top = round(anchor[0] - view.shadow_anchor[0] * zoom), round(anchor[1] - view.shadow_anchor[1] * zoom)
    meet = window(painting.image.shape, small.shape, left, top)
    if meet:
        there, here = meet
        dark = small[here].astype(np.float32) * (strength / 255) * (0.25 + 0.75 * painting.support[there])
        painting.image[there] *= spread(1 - dark)


def _add_prop(painting: Painting, scene: Scene, prop: Prop, x: float, z: float) -> None:
    view = views(prop.item)[prop.view]
    column, row, depth = painting.camera.project(x + prop.x, 0, max(z + prop.z, 5.0))
    zoom = painting.camera.focal / depth / view.pixels_per_cm
    wide, high = round(view.rgba.shape[1] * zoom), round(view.rgba.shape[0] * zoom)
    if not (3 < max(wide, high) < 4 * painting.camera.side):
        return
    rgba = view.rgba if prop.dye is None else tinted(view.rgba, COLOURS[prop.dye], 0.8)
    _cast(painting, view, zoom, (column, row), scene.shadow * 0.9)
    rgba = resize(rgba, max(1, wide), max(1, high))
    left, top = round(column - view.anchor[0] * zoom), round(row - view.anchor[1] * zoom)
    alpha = blend(painting, rgba, left, top, depth)
    if alpha is not None and scene.fault in ("too_large", "too_small"):
        meet = window(painting.flaw.shape, rgba.shape, left, top)
        if meet:
            painting.flaw[meet[0]] = np.maximum(painting.flaw[meet[0]], alpha)


def _under(solid: np.ndarray, reach: int) -> np.ndarray:
    """The band of `reach` pixels around the product's lowest visible edge."""
    rows = np.flatnonzero((solid > 0.5).any(1))
    bottom = rows[-1] if len(rows) else solid.shape[0] - 1
    band = np.zeros_like(solid)
    columns = np.flatnonzero((solid[max(0, bottom - 6) : bottom + 1] > 0.5).any(0))
    if len(columns):
        band[max(0, bottom - reach // 2) : bottom + reach, columns[0] : columns[-1] + 1] = 1
    return band


def _add_product(painting: Painting, product: Placed, near: float, span: float, salience: float) -> None:
    """The product's depth and salience. It is nearer than what it covers, even than a wall that it stands in."""
    view, zoom = product.view, product.zoom
    depth = resize(view.depth, max(1, round(view.depth.shape[1] * zoom)), max(1, round(view.depth.shape[0] * zoom)))
    meet = window(painting.depth.shape, depth.shape, product.left, product.top)
    alpha = product.rgba[..., 3].astype(np.float32) / 255
    if meet:
        there, here = meet
        solid = alpha[there] > 0.5
        own = near + depth[here][solid].astype(np.float32) * (span / 255)
        painting.depth[there][solid] = np.minimum(own, painting.depth[there][solid])
    painting.salient += (salience - painting.salient) * alpha


def _finish(
    painting: Painting, scene: Scene, product: Placed, size: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Tone, noise and reduction; the product is laid over the finished room with its own alpha, as users paste it."""
    tone = np.array(LIGHTS[scene.setting.light], np.float32) * scene.exposure
    image = cv2.resize(painting.image, (size, size), interpolation=cv2.INTER_AREA) * tone
    image += spread(rng.normal(0, 1.2, (size, size)).astype(np.float32))
    rgba = resize(product.rgba, size, size)
    lit = rgba[..., :3] * (0.5 + 0.5 * tone)
    alpha = spread(rgba[..., 3].astype(np.float32) / 255)
    rgba = np.dstack([lit.clip(0, 255).astype(np.uint8), rgba[..., 3]])
    image = image.clip(0, 255) * (1 - alpha) + rgba[..., :3] * alpha
    depth = 1 / cv2.resize(painting.depth.clip(5, 5e3), (size, size), interpolation=cv2.INTER_AREA)
    depth = (depth - depth.min()) / max(float(depth.max() - depth.min()), 1e-9)
    salient = cv2.resize(painting.salient, (size, size), interpolation=cv2.INTER_AREA)
    flaw = cv2.resize(painting.flaw, (size, size), interpolation=cv2.INTER_AREA)
    maps = {name: values[..., None] * 255 for name, values in (("depth", depth), ("saliency", salient), ("flaw", flaw))}
    rounded = {name: (values + 0.5).clip(0, 255).astype(np.uint8) for name, values in ({"image": image} | maps).items()}
    return {name: np.ascontiguousarray(v.transpose(2, 0, 1)) for name, v in (rounded | {"product": rgba}).items()}
