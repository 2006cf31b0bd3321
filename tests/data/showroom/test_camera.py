import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from src.data.showroom.camera import Camera, stand

cameras = st.builds(Camera, st.sampled_from([128, 192]), st.floats(20, 300), st.floats(-0.1, 0.5))


@given(cameras, st.floats(-100, 100), st.floats(100, 500))
def test_floor_homography_is_the_projection(camera, x, z):
    column, row, depth = camera.project(x, 0, z)
    seen = camera.floor() @ (x, z, 1)
    np.testing.assert_allclose(seen[:2] / seen[2], (column, row), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(seen[2], depth, rtol=1e-9)


@given(cameras, st.floats(-100, 100), st.floats(0, 200), st.floats(100, 500))
def test_wall_homography_is_the_projection(camera, x, y, z):
    column, row, depth = camera.project(x, y, z)
    seen = camera.wall(z) @ (x, y, 1)
    np.testing.assert_allclose(seen[:2] / seen[2], (column, row), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(seen[2], depth, rtol=1e-9)


@given(st.floats(60, 180), st.floats(0.5, 12), st.floats(5, 25))
def test_stand_sees_the_point_where_and_as_large_as_asked(row, pixels_per_cm, elevation):
    camera, (x, z) = stand(192, (80.0, row), pixels_per_cm, elevation)
    assert np.allclose(camera.project(x, 0, z), (80, row, camera.focal / pixels_per_cm))
    assert math.isclose(math.degrees(math.atan2(camera.height, z)), elevation, rel_tol=1e-6)


def test_depths_per_row_are_those_of_projected_points():
    camera = Camera(128, 120.0, 0.2)
    support, wall = camera.depths(400.0)
    for row in (70, 100, 127):
        z = next(z for z in np.linspace(30, 3000, 60000) if camera.project(0, 0, z)[1] <= row + 0.5)
        assert math.isclose(support[row], camera.project(0, 0, z)[2], rel_tol=5e-3)
    y = 120 - 400 * math.tan(0.2 + math.atan((20.5 - 64) / camera.focal))
    assert math.isclose(wall[20], camera.project(0, y, 400)[2], rel_tol=1e-6)
    assert np.isinf(support[:20]).all()  # above the horizon there is no floor
