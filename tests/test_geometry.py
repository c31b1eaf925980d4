"""The ten shapes against plane geometry: areas in closed form, points that are plainly inside or outside."""

import math

import numpy as np
import pytest
import torch

from nslib.data import geometry
from nslib.data.geometry import CLASSES, SHAPES, by_kind, cos_turns, sin_turns
from nslib.data.textures import TEXTURES

TAN36, TAN72 = math.tan(math.pi / 5), math.tan(2 * math.pi / 5)


def lens(r: float, s: float, d: float) -> float:
    """Area that two discs of radii r and s at distance d share."""
    a, b = math.acos((d * d + r * r - s * s) / (2 * d * r)), math.acos((d * d + s * s - r * r) / (2 * d * s))
    return r * r * (a - math.sin(2 * a) / 2) + s * s * (b - math.sin(2 * b) / 2)


def triangle_area(base_half: float, height: float) -> float:
    return base_half * height


AREAS = {
    "disk": math.pi * 0.8**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) * 0.5**2,  # equilateral, by its inner radius
    "pentagon": 5 * 0.75**2 * TAN36,  # regular, by its inner radius
    "star": 5 * 0.34**2 * TAN36 + 5 * (0.34 * TAN36) ** 2 * TAN72,  # a pentagon and five triangles on its sides
    "cross": 2 * (1.8 * 0.56) - 0.56**2,
    "ring": math.pi * (0.86**2 - 0.46**2),
    "crescent": math.pi * 0.85**2 - lens(0.85, 0.72, 0.42),
    "heart": 1 + math.pi * 0.5**2,  # a square and two half discs on its sides
    "arrow": triangle_area(0.85 * 0.607 / 0.795, 0.85) + 1.1 * 0.36 - 0.1 * 0.36,  # head and shaft less their overlap
}
INSIDE = {
    "disk": [(0, 0), (0.79, 0)],
    "square": [(0, 0), (0.69, 0.69)],
    "triangle": [(0, 0), (0, 0.99), (0.8, -0.45)],
    "pentagon": [(0, 0), (0, -0.74)],
    "star": [(0, 0), (0, -1.05)],  # its tip
    "cross": [(0, 0), (0.89, 0), (0, -0.89)],
    "ring": [(0.66, 0), (0, -0.85)],
    "crescent": [(-0.6, 0), (0, 0.8)],
    "heart": [(0, 0), (0.5, -0.2), (-0.2, 0.5)],
    "arrow": [(0.9, 0), (-0.85, 0.1), (0.15, 0.55)],
}
OUTSIDE = {
    "disk": [(0.81, 0)],
    "square": [(0.71, 0)],
    "triangle": [(0, 1.01), (0, -0.51)],
    "pentagon": [(0, -0.76)],
    "star": [(0, 0.45), (0.5, -0.7)],  # between two tips
    "cross": [(0.3, 0.3)],
    "ring": [(0, 0), (0.87, 0)],  # the hole
    "crescent": [(0.2, 0)],  # the bite
    "heart": [(0.5, 0.5)],  # the notch
    "arrow": [(-0.5, 0.3)],
}


def inside(shape, points: np.ndarray) -> np.ndarray:
    x, y = torch.tensor(points, dtype=torch.float32).T
    return (shape(x, y) < 0).numpy()


@pytest.mark.parametrize("name", CLASSES)
def test_area_is_that_of_the_figure(name):
    n, side = 1000, 2.4
    line = (np.arange(n) + 0.5) / n * side - side / 2
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    assert inside(getattr(geometry, name), grid).mean() * side**2 == pytest.approx(AREAS[name], rel=0.005)


@pytest.mark.parametrize("name", CLASSES)
def test_points_inside_and_outside(name):
    shape = getattr(geometry, name)
    turns = np.linspace(0, 2 * np.pi, 40)
    far = np.stack([np.cos(turns), np.sin(turns)], 1) * 1.15
    assert inside(shape, INSIDE[name]).all()
    assert not inside(shape, OUTSIDE[name]).any()
    assert not inside(shape, far).any()


@pytest.mark.parametrize("name", CLASSES)
def test_distance_changes_no_faster_than_one_to_one(name):
    """So that an edge drawn over one pixel of distance is about one pixel wide."""
    x, y = (torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1).double()
    step = 1e-4
    for dx, dy in ((step, 0), (0, step)):
        change = (getattr(geometry, name)(x + dx, y + dy) - getattr(geometry, name)(x, y)).abs()
        assert change.max() <= step * 1.001


def test_sine_of_turns():
    t = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    assert (sin_turns(t) - torch.sin(2 * math.pi * t)).abs().max() < 0.0011
    assert (cos_turns(t) - torch.cos(2 * math.pi * t)).abs().max() < 0.0011
    quarters = torch.tensor([0.0, 0.25, 0.5, 0.75])
    assert sin_turns(quarters).tolist() == [0, 1, 0, -1]


def test_each_row_goes_to_its_own_function():
    x = torch.rand(30, 5, 5)
    kind = torch.arange(30) % len(SHAPES)
    found = by_kind(kind, SHAPES, x, x)
    for row, k in enumerate(kind):
        assert torch.equal(found[row], SHAPES[k](x[row], x[row]))


@pytest.mark.parametrize("texture", TEXTURES, ids=lambda f: f.__name__)
def test_textures_stay_in_range_and_show_contrast(texture):
    line = torch.arange(0, 12, 0.03)
    t = texture(*torch.meshgrid(line, line, indexing="xy"))
    assert t.min() >= 0
    assert t.max() <= 1
    if texture.__name__ == "flat":
        assert t.unique().tolist() == [0.5]
    else:
        assert t.std() > 0.2
