"""A model cut at a deeper block than the paper cuts it, so that a noise can be added there."""

from __future__ import annotations

from torch import Tensor, nn

from nslib.vit.staged import StagedViT


class DeeperViT(StagedViT):
    """A `StagedViT` whose tokens (B, T, D) are those that enter one of its blocks, prefix tokens first.

    Noise (1, T, D) therefore reaches the class token too. Weights are shared with the model that was cut.
    """

    def __init__(self, model: StagedViT, block: int):
        mean, std = (tuple(b.flatten().tolist()) for b in (model.mean, model.std))
        super().__init__(model.vit, mean=mean, std=std, name=model.name)
        self.mean, self.std = model.mean, model.std  # in their type and place
        self.built_as(model)
        self.block = block
        self.train(model.training)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(T, D)."""
        patches, width = super().token_shape
        return patches + self.vit.num_prefix_tokens, width

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D)."""
        return self.vit.blocks[: self.block](super()._enter(super().embed(images)))

    def _enter(self, tokens: Tensor) -> Tensor:
        return tokens


def cut_at(model: StagedViT, block: int) -> StagedViT:
    """The model with its cut before a block, weights shared; 0 is the paper's cut, and gives back the model itself.

    Raises:
        ValueError: no such block; or the model drops patches in training, whose tokens no one noise fits, or is of a
            class of one's own, whose code the cut one would not have.
    """
    depth = len(model.vit.blocks)
    if not 0 <= block < depth:
        raise ValueError(f"block must be in 0..{depth - 1}, the blocks of {model.name}, got {block}")
    if not block:
        return model
    if type(model) is not StagedViT:
        own = type(model).__name__
        raise ValueError(f"block must be 0 for {model.name}: cut deeper it would lose the code of {own}, got {block}")
    if not isinstance(model.vit.patch_drop, nn.Identity):
        raise ValueError(f"block must be 0 for {model.name}, which drops patches in training, got {block}")
    return DeeperViT(model, block)
