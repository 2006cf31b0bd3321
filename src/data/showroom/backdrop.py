"""The room before anyone moves in: wall and floor or table top in perspective, window, picture, rug."""

import math

import cv2
import numpy as np

from src.data.showroom.camera import Camera
from src.data.showroom.canvas import Painting, polygon, spread
from src.data.showroom.rooms import COLOURS, EXTENT, MATERIALS, texture
from src.data.showroom.scene import Scene


def room(scene: Scene, camera: Camera, x: float, z: float, rng: np.random.Generator) -> Painting:
    side, table = camera.side, scene.brief.surface == "table"
    pattern, main, second = MATERIALS[scene.setting.floor]
    floor_colour = scene.floor_colour or main
    shade = np.array(second, float) - np.array(main, float)
    second_colour = tuple(np.array(floor_colour) + shade * (0.5 if scene.fault == "own_colours" else 1.0))
    wall_second = tuple(0.35 * np.array(scene.wall_colour) + 0.65 * np.array((205, 198, 190)))
    wall_z = max(z + scene.wall + (90 if table else 0), 8.0)
    scale = camera.focal / camera.project(0, 0, z)[2]
    shift = rng.uniform(0, 1, 2)
    support_depth, wall_depth = camera.depths(wall_z)

    warped = _warp(scene.setting.pattern, camera.wall(wall_z), side, EXTENT, scale * 0.7, shift)
    wall = _coloured(warped, scene.wall_colour, wall_second)
    across = np.linspace(1.1, 0.84, side, dtype=np.float32)
    down = np.linspace(0.9, 1.04, side, dtype=np.float32)
    wall *= spread(across[None, :] * down[:, None])
    edge = camera.row_of_floor(wall_z)
    painting = Painting(
        image=wall,
        depth=np.repeat(wall_depth.astype(np.float32)[:, None], side, 1),
        support=np.zeros((side, side), np.float32),
        salient=np.full((side, side), 0.02, np.float32),
        camera=camera,
        flaw=np.zeros((side, side), np.float32),
    )
    _decorate(painting, scene, wall_z, edge, rng)

    rows = np.arange(side, dtype=np.float32)[:, None]
    if table:
        half = max(abs(scene.wall) * 2.2, scene.brief.item.width_cm * scene.brief.factor * 1.6, 45)
        half *= rng.uniform(1, 1.8)
        back, front = z + abs(scene.wall), -1e3
        left, right = x - half, x + half
        if scene.fault == "over_edge":  # its back or a side of the table ends under the product
            reach = scene.brief.item.width_cm * scene.brief.factor * (0.12 + 0.25 * (1 - scene.severity))
            if rng.random() < 0.5:
                left = x + reach
            else:
                right = x - reach
        if scene.fault == "into_wall":
            back = z - abs(scene.wall)
        corners = ((left, back), (right, back), (right, front), (left, front))
        top = np.array([camera.project(a, 0, max(b, 2.0))[:2] for a, b in corners])
        mask = np.zeros((side, side), np.uint8)
        cv2.fillConvexPoly(mask, np.round(top * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
        painting.support = mask.astype(np.float32) / 255
        rim = max(2, int(1.6 * scale * 1.2))
        face = np.roll(painting.support, rim, 0)
        face[:rim] = 0
        face = (face - painting.support).clip(0, 1)
        painting.image += (np.array(second_colour, np.float32) * 0.55 - painting.image) * spread(face)
    else:
        painting.support = (rows - edge).clip(0, 1) * np.ones((1, side), np.float32)
    extent = EXTENT / 2.5 if table else EXTENT
    ground = _coloured(_warp(pattern, camera.floor(), side, extent, scale * 0.8, shift), floor_colour, second_colour)
    away = ((rows - edge) / max(side - edge, 1)).clip(0, 1)
    ground *= spread((0.86 + 0.2 * away) * across[None, :] ** 0.6)
    painting.image += (ground - painting.image) * spread(painting.support)
    seen = painting.support > 0.5
    painting.depth[seen] = np.repeat(support_depth.astype(np.float32)[:, None], side, 1)[seen]
    if not table:
        corner = np.exp(-abs(rows - edge) / (0.05 * side)) * 0.16
        painting.image *= spread(np.repeat(1 - corner, side, 1))
        if scene.rug:
            _rug(painting, scene, x, z, rng)
    return painting


def _warp(
    pattern: str, to_canvas: np.ndarray, side: int, extent: float, pixels_per_cm: float, shift: np.ndarray
) -> np.ndarray:
    """The texture seen through `to_canvas`, (side, side, 2) float32: brightness factor, share of the second colour."""
    pyramid = texture(pattern)
    level = 0
    while level < len(pyramid) - 1 and pyramid[level].shape[0] / extent > 1.3 * pixels_per_cm:
        level += 1
    unit = pyramid[level].shape[0] / extent
    to_texture = np.diag([unit, unit, 1.0])
    to_texture[:2, 2] = shift * pyramid[level].shape[0]
    matrix = to_texture @ np.linalg.inv(to_canvas)
    warped = cv2.warpPerspective(
        pyramid[level], matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP
    )
    return warped.astype(np.float32) * np.array([1 / 128, 1 / 255], np.float32)


def _coloured(warped: np.ndarray, first: tuple, second: tuple) -> np.ndarray:
    """(first + (second - first) * share) * brightness, (side, side, 3)."""
    brightness = warped[..., 0]
    mixed = np.stack([first, np.array(second, float) - first], axis=1)  # (3, 2)
    return cv2.transform(cv2.merge((brightness, brightness * warped[..., 1])), mixed.astype(np.float32))


def _decorate(painting: Painting, scene: Scene, wall_z: float, edge: float, rng: np.random.Generator) -> None:
    """Skirting board, framed picture and window, laid out in centimetres on the wall."""
    camera = painting.camera
    low, high = (camera.height - wall_z * math.tan(camera.pitch + angle) for angle in (0.29, -0.29))
    width = wall_z * 0.3

    def slab(x0: float, x1: float, y0: float, y1: float, colour: np.ndarray) -> None:
        corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        polygon(painting.image, [camera.project(a, b, wall_z)[:2] for a, b in corners], colour.tolist())

    if scene.brief.surface == "floor" and scene.setting.pattern not in ("brick", "tiled"):
        board = np.array(scene.wall_colour)
        slab(-9e2, 9e2, 0, 9, board * 0.5 + 118 if scene.fault != "own_colours" else board * 1.08)
    if scene.picture and scene.fault != "own_colours":
        unit = min(55.0, width * 0.7)
        middle = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8) * width
        base = max(low + 0.62 * (high - low), 20)
        tall = unit * rng.uniform(0.8, 1.3)
        frame = np.array(COLOURS[str(rng.choice(("black", "brown", "white")))], float)
        inside = np.array(COLOURS[str(rng.choice(list(COLOURS)))], float)
        slab(middle - unit / 2, middle + unit / 2, base, base + tall, frame * 0.9)
        mount = np.array((236, 234, 228.0))
        slab(middle - unit * 0.44, middle + unit * 0.44, base + unit * 0.06, base + tall - unit * 0.06, mount)
        slab(middle - unit * 0.3, middle + unit * 0.3, base + unit * 0.2, base + tall * 0.55, inside)
        slab(middle - unit * 0.3, middle + unit * 0.3, base + tall * 0.55, base + tall - unit * 0.2, inside * 0.5 + 118)
    if scene.window and scene.fault != "own_colours":
        unit = min(110.0, width * 1.1)
        middle = -rng.uniform(0.45, 0.9) * width
        base = max(low + 0.52 * (high - low), 10)
        tall = unit * 1.4
        slab(middle - unit * 0.55, middle + unit * 0.55, base - unit * 0.05, base + tall, np.array((244, 242, 238.0)))
        for a, b in ((-0.5, -0.02), (0.02, 0.5)):
            slab(middle + a * unit, middle + b * unit, base, base + tall * 0.96, np.array((214, 230, 240.0)))
            slab(middle + a * unit, middle + b * unit, base, base + tall * 0.3, np.array((196, 214, 200.0)))


def _rug(painting: Painting, scene: Scene, x: float, z: float, rng: np.random.Generator) -> None:
    item = scene.brief.item
    span = max(item.width_cm, item.depth_cm) * scene.brief.factor * scene.scale * rng.uniform(0.75, 1.1)
    angle = np.linspace(0, 2 * np.pi, 48)
    colour = np.array(COLOURS[str(rng.choice(list(COLOURS)))], float) * 0.6 + 70
    if scene.fault == "own_colours":
        colour = np.array(scene.floor_colour or colour) * 0.94
    for radius, tone in ((1.0, 0.9), (0.94, 1.0), (0.78, 0.95), (0.74, 1.0)):
        away = [max(z + radius * span * 0.8 * math.sin(a), 2) for a in angle]
        across = [x + radius * span * math.cos(a) for a in angle]
        ring = [painting.camera.project(*pair)[:2] for pair in zip(across, [0] * len(angle), away, strict=True)]
        points = np.round(np.array(ring).clip(-4e3, 4e3) * 16).astype(np.int32)
        cv2.fillPoly(painting.image, [points], (colour * tone).tolist(), cv2.LINE_AA, 4)
