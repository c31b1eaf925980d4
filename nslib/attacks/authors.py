"""How the authors attack: normalised images as if they lay in [0, 1]. For comparison only; see notebook 06."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nslib.vit.staged import StagedViT


class _Normalised(nn.Module):
    """The model as a function of images that are normalised already."""

    def __init__(self, model: StagedViT):
        super().__init__()
        self.model, self.name = model, f"{model.name} on normalised images"
        self.eval()

    def forward(self, normalised: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K); the model normalises what it is given, so that is undone first."""
        return self.model(normalised * self.model.std + self.model.mean)


def attack_normalised(model: StagedViT, images: Tensor, labels: Tensor, attack: Callable[..., Tensor]) -> Tensor:
    """Normalise images (B, C, H, W), clip them to [0, 1] as the attack demands, attack there, and go back to pixels.

    The clipping alone takes all that is darker than the mean, so accuracy falls also with eps = 0.

    Args:
        attack: (model, images, labels) -> images, such as FGSM with its eps, which here counts in stds.
    """
    normalised = ((images - model.mean) / model.std).clamp(0, 1)
    found = attack(_Normalised(model).to(images.device), normalised, labels)
    return found * model.std + model.mean
