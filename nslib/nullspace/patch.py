"""The exact nullspace of the patch embedding: what can be added to an image without changing one token."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nslib.nullspace.rank import zero_up_to
from nslib.vit.staged import StagedViT


class PatchNullspace:
    """Nullspace of the linear map from one patch in pixel units, (C P P), to its token, (D).

    The model divides each channel by its std before the convolution, so that the map is W diag(1/std). Its singular
    vectors with singular value <= tol span the nullspace; they are orthonormal in pixels, also when the stds differ.

    Args:
        model: its weights are read once, in float64.
        tol: singular values up to this count as zero. Default: `zero_up_to`, by the type in which the weights
            are stored.
    Raises:
        ValueError: tol is no number >= 0, or the weights are not finite.
    Source: arXiv:2403.10476, Section 3.1, Eq. (2).
    """

    def __init__(self, model: StagedViT, *, tol: float | None = None):
        if tol is not None and not tol >= 0:
            raise ValueError(f"tol must be >= 0, got {tol}")
        weight = model.vit.patch_embed.proj.weight.detach()
        if not weight.isfinite().all():
            raise ValueError(f"weights of the patch embedding of {model.name} are not finite: look at their file")
        self.patch_shape = tuple(weight.shape[1:])  # (C, P, P)
        self.image_shape = model.image_shape
        self.matrix = (weight.cpu().double() / model.std.cpu().double().reshape(1, -1, 1, 1)).flatten(1)  # (D, C P P)
        self._stored = [dtype for dtype in (weight.dtype, model.stored_dtype) if dtype]
        self._tol = tol

    @cached_property
    def singular_values(self) -> Tensor:
        """(min(D, C P P),) in falling order, float64."""
        return torch.linalg.svdvals(self.matrix)

    @property
    def tol(self) -> float:
        """The singular value up to which a direction counts as null."""
        if self._tol is not None:
            return self._tol
        return zero_up_to(self.singular_values, self.matrix.shape, *self._stored)

    @property
    def rank(self) -> int:
        return int((self.singular_values > self.tol).sum())

    @property
    def dim(self) -> int:
        """C P P - rank, by the rank-nullity theorem."""
        return self.matrix.shape[1] - self.rank

    @cached_property
    def basis(self) -> Tensor:
        """(C P P, R) float64 with orthonormal columns, R = dim."""
        vh = torch.linalg.svd(self.matrix, full_matrices=True).Vh
        return vh[self.rank :].T.contiguous()

    @cached_property
    def seen(self) -> Tensor:
        """(rank, C P P) float64 with orthonormal rows: what the embedding sees, the complement of `basis`."""
        return torch.linalg.svd(self.matrix, full_matrices=False).Vh[: self.rank]

    def check_not_trivial(self) -> None:
        """Refuse a patch embedding that sees every pixel.

        Raises:
            ValueError: the nullspace is trivial; names models that have one.
        """
        if self.dim == 0:
            pixels, width = self.matrix.shape[::-1]
            raise ValueError(
                f"this patch embedding, {pixels} -> {width}, has the trivial nullspace only: take a model with C*P*P "
                "larger than its width, such as shapes_vit, vit_tiny_patch16_224 or any of patch side 32"
            )

    def sample(
        self,
        n: int,
        *,
        norm: float | None = None,
        peak: float | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Random image-sized nullspace noise, (n, C, H, W) in pixel units.

        Each patch is a combination of the basis vectors with N(0, 1) coefficients; the whole image is then scaled.

        Args:
            norm: l2 norm of each image's noise. Exactly one of norm and peak.
            peak: largest absolute pixel of each image's noise.
        Raises:
            ValueError: the nullspace is trivial, n is below 1, or not exactly one of norm and peak is given.
        """
        self.check_not_trivial()
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if (norm is None) == (peak is None):
            raise ValueError(f"give exactly one of norm and peak, got norm={norm}, peak={peak}")
        patches = self.image_shape[1] // self.patch_shape[1] * (self.image_shape[2] // self.patch_shape[2])
        coefficients = torch.randn(n, patches, self.dim, generator=generator, dtype=torch.float64)
        noise = self.fold(coefficients @ self.basis.T)
        size = noise.flatten(1).norm(dim=1) if peak is None else noise.flatten(1).abs().amax(1)
        return (noise * ((norm if peak is None else peak) / size).reshape(-1, 1, 1, 1)).to(dtype)

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape than (B, C, H, W) of the model's.

        Raises:
            ValueError: so they are.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            (channels, height, width), got = self.image_shape, tuple(images.shape)
            remedy = f"resize to {height} x {width}" if got[1:2] == (channels,) else f"it takes {channels} channels"
            raise ValueError(f"images must be (B, {channels}, {height}, {width}), got {got}: {remedy}")

    def project(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Split images (B, C, H, W) into their parts in the nullspace and in its orthogonal complement, same type.

        The two add up to the images; the second alone gives the model's tokens. Pixels beyond the last whole patch,
        which no token sees, belong to the first.

        Raises:
            ValueError: images of another shape, or of whole numbers, which cannot hold such parts.
        """
        self.check_images(images)
        if not images.is_floating_point():
            raise ValueError(f"images must be of a floating type, got {images.dtype}: divide levels by 255")
        patches = self.unfold(images.cpu().double())
        null = self.fold(patches @ self.basis @ self.basis.T, images.cpu().double()).to(images)
        return null, images - null

    def unfold(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C P P), each patch in the order of the convolution's weight."""
        side = self.patch_shape[1:]
        return torch.nn.functional.unfold(images, side, stride=side).transpose(1, 2)

    def fold(self, patches: Tensor, canvas: Tensor | None = None) -> Tensor:
        """(B, N, C P P) -> (B, C, H, W), over a canvas where no patch reaches."""
        side, (height, width) = self.patch_shape[1:], self.image_shape[1:]
        image = torch.nn.functional.fold(patches.transpose(1, 2), (height, width), side, stride=side)
        if canvas is not None:
            rows, columns = height // side[0] * side[0], width // side[1] * side[1]
            image[..., rows:, :] = canvas[..., rows:, :]
            image[..., :, columns:] = canvas[..., :, columns:]
        return image
