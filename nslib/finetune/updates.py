"""One update of the model: loss, gradient, clipping, AdamW, cosine learning rate, and an average of the weights."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from nslib.config import FinetuneConfig
from nslib.finetune.augment import Augment, put_drop_path, set_drop_path
from nslib.finetune.cut import cut_at
from nslib.finetune.objectives import Objective, View
from nslib.finetune.precision import computing_in
from nslib.machine.processes import Share
from nslib.vit.staged import StagedViT


class Trainer:
    """A model in training with all that changes from update to update.

    Args:
        model: trained in place; in evaluation mode except inside `update`. `self.model` is it with its cut where
            cfg.block wants the noise.
        cfg: with its precisions `resolved`.
        share: of each batch; gradients are averaged over processes, so that all hold the same weights.
    Raises:
        ValueError: no parameter has cfg.trainable in its name; or as `Augment` and `cut_at`.
    """

    def __init__(self, model: StagedViT, objective: Objective, cfg: FinetuneConfig, share: Share):
        self.whole, self.model = model, cut_at(model, cfg.block)
        self.objective, self.cfg, self.share = objective, cfg, share
        self.augment = Augment(model, cfg, share.size(cfg.batch))
        self._undropped = set_drop_path(model, cfg.drop_path) if cfg.drop_path else None
        self.parameters = _trainable(model, cfg.trainable)
        groups = param_groups_weight_decay(
            model.vit, cfg.weight_decay, no_weight_decay_list=model.vit.no_weight_decay()
        )
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=cfg.rounds * cfg.steps, eta_min=cfg.lr_min
        )
        self.ema = ModelEmaV3(model.vit, decay=cfg.ema) if cfg.ema else None

    def update(self, images: Tensor, targets: Tensor, noise: Tensor | None, generator: torch.Generator) -> float:
        """Make one update and return its loss.

        Args:
            images: (B, C, H, W) in [0, 1], this process's part of the batch; targets (B,) or (B, K).
            noise: (1, N, D), or (B, N, D) for one an image, for the objectives that have one.
            generator: of the attack's random start.
        Raises:
            FloatingPointError: loss or gradient is not finite; the weights are as before.
        """
        view = View(images, targets, noise)
        if self.objective.attack:
            with computing_in(self.cfg.attack_precision, images.device):
                found = self.objective.attack(self.model, view, self.cfg, generator)
            view = view._replace(adversarial=found)
        self.model.train()
        loss = self._gradient(view)
        if self.objective.sharpness:
            before = self._climb()
            self._gradient(view)
            torch._foreach_copy_([p.data for p in self.parameters], before)
        self.model.eval()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip)
        told = torch.stack((self.share.mean(loss), norm.to(loss))).tolist()  # at once: a GPU waits for each
        if not all(map(math.isfinite, told)):
            raise FloatingPointError(f"loss {told[0]}, gradient norm {told[1]}")
        self.optimizer.step()
        self.schedule.step()
        if self.ema:
            self.ema.update(self.model.vit)
        return told[0]

    @torch.no_grad()
    def check(self, images: Tensor) -> None:
        """Make sure that the model as it is now still answers, before it is saved or a round begins with it.

        An update looks at its loss and gradient, from before the step: what the last one did shows in the next.

        Raises:
            FloatingPointError: logits of these images (B, C, H, W), on any process, are not finite.
        """
        finite = self.model(images).isfinite().all().float()
        if self.share.mean(finite).item() < 1:
            raise FloatingPointError("logits after the update are not finite")

    def _gradient(self, view: View) -> Tensor:
        """Fill the gradients with those of the whole batch; returns this process's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.model, view, self.cfg)
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
            got = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss of objective {self.cfg.objective} must be a scalar with a gradient, got {got}")
        loss.backward()
        if self.share.count > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            flat = self.share.mean(torch.cat([g.flatten() for g in gradients]))
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        return loss.detach()

    @torch.no_grad()
    def _climb(self) -> list[Tensor]:
        """Move the weights by sam_rho along the gradient; returns copies of what they were.

        Source: Foret et al. 2021, arXiv:2010.01412.
        """
        before = [p.clone() for p in self.parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        length = torch.stack([g.norm() for g in gradients]).norm()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.add_(gradient * (self.cfg.sam_rho / length.clamp_min(1e-12)))
        torch.clear_autocast_cache()  # it holds these weights in bfloat16 as they were, and would go on serving them
        return before

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def result(self, *, averaged: bool = True) -> StagedViT:
        """A copy of the model in evaluation mode, with cfg.ema of the averaged weights unless asked not to."""
        model = deepcopy(self.whole)
        if self.ema and averaged:
            model.vit.load_state_dict(self.ema.module.state_dict())
        if self._undropped:
            put_drop_path(model, self._undropped)
        for p in model.parameters():
            p.requires_grad_(True)
            p.grad = None
        return model.eval()

    def state_dict(self) -> dict:
        """All that an update depends on and changes."""
        parts = {"model": self.model.vit, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.ema:
            parts["ema"] = self.ema.module
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` gave."""
        self.model.vit.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])


def _trainable(model: StagedViT, name: str) -> list[nn.Parameter]:
    """Switch gradients off for all but the parameters whose name contains `name`, and return these."""
    for n, p in model.vit.named_parameters():
        p.requires_grad_(name in n)
    chosen = [p for p in model.vit.parameters() if p.requires_grad]
    if not chosen:
        near = ", ".join(n for n, _ in model.vit.named_parameters() if "." not in n)
        raise ValueError(f"trainable must be part of a parameter's name, such as {near} or blocks.0, got {name!r}")
    return chosen


def average_told(cfg: FinetuneConfig) -> str:
    """In words, that an average over the updates keeps more of the weights it began with than a tenth; else empty."""
    updates = cfg.rounds * cfg.steps
    share = cfg.ema**updates if cfg.ema else 0.0
    if share <= 0.1:
        return ""
    return (
        f"ema = {cfg.ema} leaves {100 * share:.0f} % of the starting weights in the average over {updates} updates: "
        f"below {0.1 ** (1 / updates):.4f} it leaves less than 10 %"
    )
