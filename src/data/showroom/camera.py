"""The one pinhole camera that floor, wall, props and product of an image share."""

import math
from dataclasses import dataclass

import numpy as np

FOCAL = 0.5 / math.tan(math.radians(17))  # focal length in canvas sides: a vertical field of view of 34 degrees


@dataclass(frozen=True)
class Camera:
    """A camera `height` cm above the support, looking `pitch` radians down onto a canvas of `side` pixels.

    World: X to the right, Y up from the support, Z away from the camera along the support; all in cm.
    """

    side: int
    height: float
    pitch: float

    @property
    def focal(self) -> float:
        return FOCAL * self.side

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """(column, row, distance along the optical axis) of a world point."""
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        depth = (self.height - y) * sine + z * cosine
        up = (y - self.height) * cosine + z * sine
        return self.side / 2 + self.focal * x / depth, self.side / 2 - self.focal * up / depth, depth

    def floor(self) -> np.ndarray:
        """(3, 3) homography from support (X, Z) to canvas (column, row)."""
        s, f, h = self.side / 2, self.focal, self.height
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        return np.array(
            [
                [f, s * cosine, s * h * sine],
                [0, s * cosine - f * sine, (s * sine + f * cosine) * h],
                [0, cosine, h * sine],
            ]
        )

    def wall(self, z: float) -> np.ndarray:
        """(3, 3) homography from the wall at distance `z`, (X, Y), to canvas (column, row)."""
        s, f, h = self.side / 2, self.focal, self.height
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        depth = h * sine + z * cosine
        shift = s * depth + f * (h * cosine - z * sine)
        return np.array([[f, -s * sine, s * depth], [0, -s * sine - f * cosine, shift], [0, -sine, depth]])

    def row_of_floor(self, z: float) -> float:
        """Canvas row of the line Z = `z` on the support."""
        return self.project(0, 0, z)[1]

    def depths(self, wall: float) -> tuple[np.ndarray, np.ndarray]:
        """Distance along the optical axis of the support and of a wall at `wall`, each (side,), per canvas row.

        The support's is inf above the horizon.
        """
        offset = np.arctan((np.arange(self.side) + 0.5 - self.side / 2) / self.focal)
        angle = self.pitch + offset
        with np.errstate(divide="ignore"):
            support = np.where(angle > 1e-3, self.height * np.cos(offset) / np.sin(np.maximum(angle, 1e-3)), np.inf)
        return support, wall * np.cos(offset) / np.cos(angle)


def stand(
    side: int, anchor: tuple[float, float], pixels_per_cm: float, elevation: float
) -> tuple[Camera, tuple[float, float]]:
    """The camera that sees a support point at `anchor` (column, row), `elevation` degrees down, at a scale.

    With it comes the point's (X, Z).
    """
    seen = math.radians(elevation)
    below = math.atan((anchor[1] - side / 2) / (FOCAL * side))
    depth = FOCAL * side / pixels_per_cm
    distance = depth / math.cos(below)
    camera = Camera(side, distance * math.sin(seen), seen - below)
    return camera, ((anchor[0] - side / 2) / pixels_per_cm, distance * math.cos(seen))
