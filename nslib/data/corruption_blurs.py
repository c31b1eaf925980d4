"""Defocus, glass, motion and zoom blur: linear maps of the pixels, and in glass blur a shuffle between two.

Defocus, motion and zoom take weights in whole 2^-16ths. Levels are whole numbers up to 255, so every partial sum is a
whole number below 2^24, which float32 holds exactly: the order of summation, hence batch, threads and device, cannot
change a byte. Rounding the weights moves a result by some thousandths of a level.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from nslib.data.corruption_fields import bits
from nslib.data.hashing import Draws, key

SLACK = 2.0**-10  # levels; the library truncates, and float32 may put a whole number just below itself
_ONE = 2**16


def defocus_blur(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Averages over a disk, softened at its edge; borders mirror without repeating the edge."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    kernel = disk_kernel(radius, sigma)
    weight = torch.from_numpy(integer_weights(kernel)).to(levels)
    planes = F.pad(levels, (len(kernel) // 2,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    count = planes.shape[1]
    # (1, 3 B, H + 2 r, W + 2 r): planes as channels of one image, over which a depthwise convolution is vectorised
    out = F.conv2d(planes, weight.expand(count, 1, *kernel.shape), groups=count)
    return out.div_(_ONE).reshape(levels.shape)


def glass_blur(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Gaussian blur, truncation to 8 bits, pixels moved within a few px, Gaussian blur."""
    sigma, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    blurred = gaussian_filter(levels, (sigma, sigma), truncate=4, border="replicate").add_(SLACK).floor_()
    source = shuffle_sources(keys, *levels.shape[2:], reach, passes).flatten()
    channels = blurred.transpose(0, 1).flatten(1)  # (3, B H W)
    moved = torch.stack([c.index_select(0, source) for c in channels])
    moved = moved.reshape(3, len(levels), *levels.shape[2:]).transpose(0, 1)
    return gaussian_filter(moved, (sigma, sigma), truncate=4, border="replicate")


def motion_blur(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Smears along a line within 45 degrees of the horizontal, at an angle of each image's own."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    angles = Draws(keys)("angle", -45.0, 45.0).tolist()
    return torch.stack([smear(image, radius, sigma, angle) for image, angle in zip(levels, angles, strict=True)])


def zoom_blur(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Mean of the image and of 11 to 16 enlargements of its centre.

    All zooms together are one sparse matrix over the pixels, the same for every image and channel: `embedding_bag`
    sums weighted rows of (H W, 3 B).
    """
    batch, _, height, width = levels.shape
    pixels, offsets, weights = _zoom_matrix(severity, height, width, levels.device)
    columns = levels.reshape(batch * 3, -1).t().contiguous()
    out = F.embedding_bag(pixels, columns, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    return out.div_(_ONE).t().reshape(levels.shape)


def gaussian_filter(field: Tensor, sigma: tuple[float, float], truncate: float, border: str) -> Tensor:
    """(B, C, H, W) under a Gaussian of this standard deviation in rows and in columns, cut off at `truncate` of them.

    Args:
        border: `replicate` repeats the edge; `symmetric` mirrors with the edge repeated.
    """
    for dim, s in zip((2, 3), sigma, strict=True):
        kernel = gaussian_kernel(s, truncate)
        radius, size = len(kernel) // 2, field.shape[dim]
        count = 1 if border == "replicate" else radius
        before, after = field.narrow(dim, 0, count).flip(dim), field.narrow(dim, size - count, count).flip(dim)
        shape = [radius if d == dim else n for d, n in enumerate(field.shape)]
        padded = torch.cat([before.expand(shape), field, after.expand(shape)], dim=dim)
        field = torch.zeros_like(field)
        for i, weight in enumerate(kernel.tolist()):
            field.add_(padded.narrow(dim, i, size), alpha=weight)
    return field


def gaussian_kernel(sigma: float, truncate: float) -> np.ndarray:
    """(2 r + 1,) weights with sum 1, cut off at r = round(truncate sigma)."""
    r = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    return weights / weights.sum()


def disk_kernel(radius: int, sigma: float) -> np.ndarray:
    """A disk (17, 17), or (21, 21) for radius 10, under a small Gaussian.

    Where the disk touches the kernel's border, at radius 8 and 10, softening loses a little of it, as in the library:
    the sum is then about 0.99, and the image darker.
    """
    half, soft = (8, 1) if radius <= 8 else (radius, 2)
    line = np.arange(-half, half + 1)
    disk = (line**2 + line[:, None] ** 2 <= radius**2).astype(float)
    disk /= disk.sum()
    edge = np.exp(-0.5 * (np.arange(-soft, soft + 1) / sigma) ** 2)
    for _ in range(2):  # one axis, then the other
        rows = np.pad(disk, ((soft, soft), (0, 0)), mode="reflect")
        disk = sum(weight * rows[i : i + len(line)] for i, weight in enumerate(edge / edge.sum())).T
    return disk


def smear(image: Tensor, radius: int, sigma: float, angle: float) -> Tensor:
    """One image (C, H, W) averaged along a line that starts at each pixel, borders repeated.

    The weights fall off as a half Gaussian over 2 radius + 1 steps of one pixel, rounded to whole pixels. A line that
    leaves the image altogether ends there, unnormalised: an image of 32 to 40 px can darken, as in the library.

    Args:
        angle: degrees, 0 along the rows.
    """
    _, height, width = image.shape
    steps = np.arange(2 * radius + 1)
    falling = np.exp(-0.5 * (steps / sigma) ** 2)
    weights = integer_weights(falling / falling.sum())
    taps: dict[tuple[int, int], float] = {}
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        down = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        if abs(down) >= height or abs(right) >= width:
            break
        taps[down, right] = taps.get((down, right), 0.0) + weight  # on a diagonal two steps may share a pixel
    reach = max(max(abs(down), abs(right)) for down, right in taps)
    padded = F.pad(image.unsqueeze(0), (reach,) * 4, mode="replicate").squeeze(0)
    out = torch.zeros_like(image)
    for (down, right), weight in taps.items():
        top, left = reach + down, reach + right
        out.add_(padded[:, top : top + height, left : left + width], alpha=weight)
    return out.div_(_ONE)


def shuffle_sources(keys: Tensor, height: int, width: int, reach: int, passes: int) -> Tensor:
    """Where the pixels of glass blur come from: (B, H W) int32, indices into all B H W pixels.

    The library walks the image from its last pixel to its first and at p takes over what lies at q = p + d, d uniform
    in [-reach, reach)^2. (Meant as a swap; the second half of its assignment reads what the first has just written.)
    If the walk has been at q already, p gets what q got. Following q to its own source, and so on to a pixel that the
    walk had not reached, is a chain of about two steps; squaring the map "next in the chain" until it stands still
    resolves all chains at once, with the outcome of the walk.
    """
    count = height * width
    pixel = torch.arange(count, dtype=torch.int32, device=keys.device)
    row, column = pixel // width, pixel % width
    walked = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    here = torch.arange(len(keys) * count, dtype=torch.int32, device=keys.device).reshape(-1, count)
    source, walked = here, walked.to(torch.int32)
    for n in range(passes):
        step = shuffle_steps(key(keys, n), height, width, reach) * walked
        target = here + step
        link = here + step.clamp(min=0) * _at(walked.repeat(len(keys)), target)  # to where the walk has been before
        for _ in range(4 if reach > 1 else 0):  # chains of 16, about the longest in an image
            link = _at(link, link)
        while not torch.equal(link, further := _at(link, link)):
            link = further
        source = _at(source, _at(target, link))
    return source


def shuffle_steps(keys: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Steps down and to the right, each uniform over -reach .. reach - 1, as offsets of an index: (B, H W) int32."""
    side = torch.arange(-reach, reach, dtype=torch.int32, device=keys.device)
    offsets = (side.unsqueeze(1) * width + side).flatten()
    words = bits(keys, height * width, torch.int16).to(torch.int32) + 2**15
    return _at(offsets, words * len(offsets) >> 16)


def integer_weights(weights: np.ndarray) -> np.ndarray:
    """Weights as whole 2^-16ths with the same sum; what rounding leaves goes to the largest."""
    whole = np.rint(weights * _ONE)
    whole.flat[whole.argmax()] += np.rint(weights.sum() * _ONE) - whole.sum()
    return whole


def _at(values: Tensor, indices: Tensor) -> Tensor:
    return values.flatten().index_select(0, indices.flatten()).reshape(indices.shape)


@lru_cache(maxsize=5)  # the severities at one size
def _zoom_matrix(severity: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the (H W, H W) matrix: source pixels, offsets of the rows, weights in 2^-16ths. At 224 px about 12 MB."""
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, stop, step)
    zooms = sum(sparse.kron(_zoom_axis(height, f), _zoom_axis(width, f), format="csr") for f in factors)
    matrix = (zooms * (_ONE / (len(factors) + 1))).rint()
    # The image itself, and what rounding left: each row sums to one.
    matrix = sparse.csr_array(matrix + sparse.diags_array(_ONE - matrix.sum(axis=1)))
    matrix.eliminate_zeros()
    parts = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32), matrix.data.astype(np.float32)
    return tuple(torch.from_numpy(part).to(device) for part in parts)


def _zoom_axis(size: int, factor: float) -> sparse.csr_array:
    """(size, size): the central 1 / factor of an axis, its ends kept, interpolated linearly to `size` or a little more,
    of which the first `size` are kept."""
    crop = math.ceil(size / factor)
    position = np.arange(size) * (crop - 1) / (round(crop * factor) - 1)
    low = np.minimum(position.astype(int), crop - 2)
    share = position - low
    first = low + (size - crop) // 2
    rows = np.arange(size)
    values, columns = np.concatenate([1 - share, share]), np.concatenate([first, first + 1])
    return sparse.csr_array((values, (np.tile(rows, 2), columns)), shape=(size, size))
