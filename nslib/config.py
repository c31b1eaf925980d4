"""Settings of each task as frozen dataclasses. Their checks are in `nslib.checks`."""

from __future__ import annotations

from dataclasses import dataclass

from nslib.checks import require, require_counts, require_each, require_not_negative, require_positive

WEIGHTS = ("shipped", "pretrained", "random", "train")  # words for weights; anything else is a file or folder
TABLE2 = ("clean", "patchfool", "cw", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")  # in its order


@dataclass(frozen=True)
class DataConfig:
    """Where images come from."""

    kind: str = "shapes"  # or "folder", an ImageNet-style tree
    root: str = ""  # of the folder, which holds train and val
    seed: int = 0
    images: int = 0  # of shapes: how many split train holds; 0: it has no end
    resize: bool = True  # False: train and val are cropped only, for copies that were resized before
    # The family, each in its published layout; by default the customary name under root (nslib.data.families).
    a: str = ""
    r: str = ""
    v2: str = ""
    sketch: str = ""
    stylized: str = ""
    c: str = ""
    damagenet: str = ""
    cue_conflict: str = ""

    def __post_init__(self):
        require_counts(self, "seed", "images", least=0)

    def check_root(self) -> None:
        """Refuse a folder that is not named, by a ValueError."""
        if self.kind == "folder" and not self.root:
            raise ValueError("no ImageNet folder: pass --imagenet FOLDER or set NSLIB_IMAGENET")

    def paths(self) -> dict[str, str]:
        """The folders that are set, by the name of their setting."""
        return {k: v for k, v in vars(self).items() if k != "kind" and v and isinstance(v, str)}


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a classifier on `shapes` from scratch: AdamW, one-cycle learning rate."""

    model: str = "shapes_vit"
    size: int = 48  # image side, pixels
    steps: int = 10000
    batch: int = 128
    images: int = 0  # rendered once and kept on the device, seen turned and mirrored; 0: fresh ones every step
    lr: float = 1.5e-3  # peak
    weight_decay: float = 0.05
    clip: float = 1.0  # largest gradient norm
    seed: int = 0
    checkpoint_every: int = 200  # steps between saved states
    report_images: int = 4000  # of each split, for the record

    def __post_init__(self):
        require_counts(self, "size", "steps", "batch", "checkpoint_every", "report_images")
        require_counts(self, "images", "seed", least=0)
        require_positive(self, "lr")
        require_each(self, ("clip",), lambda v: v > 0, "> 0")
        require_not_negative(self, "weight_decay")


@dataclass(frozen=True)
class SurrogateConfig(PretrainConfig):
    """Training of the small CNN on which attacks are made that transfer to a ViT: thanks to FGSM images at the end."""

    model: str = "surrogate_cnn"
    steps: int = 1700
    batch: int = 64
    lr: float = 4e-3
    fgsm_steps: int = 300  # the last ones
    fgsm_eps: float = 8 / 255

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.fgsm_steps <= self.steps, "fgsm_steps", f"in 0..{self.steps}", self.fgsm_steps)
        require(0 <= self.fgsm_eps <= 0.8, "fgsm_eps", "in [0, .8], for it takes steps of 1.25 eps", self.fgsm_eps)


@dataclass(frozen=True)
class NoiseConfig:
    """Learning of one noise. Units are those of patch tokens; eps is a squared l2 gap between softmax vectors."""

    limit: float = 3.0  # start: uniform in (-limit, limit)
    lr: float = 0.1  # AdamW, cosine to 0 over `steps`
    weight_decay: float = 0.01
    steps: int = 3000  # most updates (all of them without eps)
    batch: int = 128
    eps: float | None = 0.03  # in (0, 2]; None: no early stop, Eq. (4)
    regularization: float = 0.0  # lambda of Eq. (4)
    stop_on: str = "heldout"  # or "batch", as the authors do

    def __post_init__(self):
        require_positive(self, "limit", "lr")
        require_not_negative(self, "weight_decay", "regularization")
        require_counts(self, "steps", "batch")
        require(self.eps is None or 0 < self.eps <= 2, "eps", "a squared l2 gap in (0, 2], or None", self.eps)
        require(self.stop_on in ("heldout", "batch"), "stop_on", "heldout or batch", self.stop_on)


@dataclass(frozen=True)
class FinetuneConfig:
    """Algorithm 1 and its controls: rounds of learning a noise against the model, then training the model with it."""

    objective: str = "nullspace"  # or a control, see nslib.finetune.objectives
    rounds: int = 20  # K
    steps: int = 40  # S, updates of the model in a round
    batch: int = 128  # images of an update, over all processes together
    lr: float = 1e-5  # AdamW, cosine to lr_min over all updates
    lr_min: float = 1e-6
    weight_decay: float = 0.05  # of matrices
    clip: float = 1.0  # largest gradient norm
    noise: NoiseConfig = NoiseConfig()
    pool: int = 512  # images to learn noise from: the first of the train split, on which no update is made
    heldout: int = 256  # the next ones, on which the stopping of the noise is tested
    ema: float = 0.0  # decay of an average of the weights, which is then the result; 0: none
    trainable: str = ""  # only parameters whose name contains this, such as pos_embed; empty: all
    precision: str = "auto"  # or float32, or bfloat16, which auto takes where the device is faster in it
    seed: int = 0
    checkpoint_every: int = 40  # updates between saved states, besides those around each learning of noise
    # Beyond the paper
    noises: int = 1  # learned in each round; each update draws one
    warm_start: float = 0.0  # begin at the last round's noise, at this multiple of its way to the boundary; 0: anew
    block: int = 0  # the noise is added to the input of this block, from 0; there the class token takes it too, if > 0
    groups: int = 1  # classes are dealt into so many groups, label modulo groups, each with a noise of its own
    # What is done to the images of an update
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha
    smoothing: float = 0.0  # of labels
    augment: str = ""  # timm's spelling, such as rand-m9-mstd0.5-inc1 or augmix-m3-w3
    erasing: float = 0.0  # probability
    drop_path: float = 0.0  # rate of the last block, rising linearly from 0
    # Of the controls that train on adversarial images, and of sharpness-aware minimisation
    attack_eps: float = 8 / 255  # linf, images lying in [0, 1]
    attack_step: float = 2 / 255
    attack_steps: int = 10
    attack_precision: str = "auto"  # of the model under these attacks; auto: that of the updates
    trades_beta: float = 1.0
    sam_rho: float = 0.05

    def __post_init__(self):
        require(isinstance(self.noise, NoiseConfig), "noise", "a NoiseConfig", self.noise)
        require_counts(self, "rounds", "steps", "batch", "pool", "heldout", "noises", "groups")
        require_counts(self, "checkpoint_every", "attack_steps")
        require_counts(self, "seed", "block", least=0)
        require_positive(self, "lr", "sam_rho")
        require_each(self, ("clip",), lambda v: v > 0, "> 0")
        require_not_negative(self, "weight_decay", "mixup", "cutmix", "trades_beta")
        require_each(self, ("ema", "smoothing", "drop_path"), lambda v: 0 <= v < 1, "in [0, 1)")
        require_each(self, ("erasing", "attack_eps", "attack_step"), lambda v: 0 <= v <= 1, "in [0, 1]")
        require(0 <= self.lr_min <= self.lr, "lr_min", f"in [0, lr = {self.lr}]", self.lr_min)
        require(self.warm_start == 0 or self.warm_start > 1, "warm_start", "0, or > 1", self.warm_start)
        require(self.objective != "permuted" or not self.warm_start, "warm_start", "0 with permuted", self.warm_start)
        require(self.groups == 1 or self.noises == 1, "groups", f"1 with noises = {self.noises}", self.groups)
        known = ("auto", "float32", "bfloat16")
        require_each(self, ("precision", "attack_precision"), lambda v: v in known, "auto, float32 or bfloat16")


@dataclass(frozen=True)
class SuiteConfig:
    """What is measured of a model, and how hard. Budgets are in pixel units, images lying in [0, 1]."""

    columns: tuple[str, ...] = (*TABLE2, "pgd", "autoattack")
    images: int = 1000  # of each column, or as many as there are
    first: int = 0  # image of each split with which to begin
    c_images: int = 0  # at most, of column c, each under every corruption; 0: as many as of the others
    costly_images: int = 64  # of patchfool, cw and autoattack
    batch: int = 128
    fgsm_eps: float = 1 / 255  # linf, as the likeliest of the four values in the authors' code
    pgd_eps: float = 1 / 255  # linf, in steps of a quarter
    pgd_steps: int = 10
    autoattack_eps: float = 8 / 255  # linf
    cw_budget: float = 0.5  # l2; an image counts as right if the nearest adversarial one is farther away
    cw_steps: int = 50
    cw_early_stop: bool = False  # see `carlini_wagner`: what full and gpu kept was made with it
    patchfool_steps: int = 250
    patchfool_patches: int = 1
    patchfool_bound: float | None = None  # linf inside the patches; None: any colour
    transfer_eps: float = 16 / 255  # linf, of damagenet's images, made on the surrogate
    transfer_smoothing: int = 7  # pixels; 1 is none
    protocol: str = "pixels"  # or "authors": FGSM and PGD on normalised images as if these lay in [0, 1]
    seed: int = 0  # of corruptions and of the attacks' random starts

    def __post_init__(self):
        require(not isinstance(self.columns, str), "columns", "several names, such as ('clean', 'fgsm')", self.columns)
        require_counts(self, "images", "costly_images", "batch", "pgd_steps", "cw_steps")
        require_counts(self, "patchfool_steps", "patchfool_patches")
        require_counts(self, "first", "c_images", least=0)
        require_counts(self, "transfer_smoothing")
        require_each(self, ("transfer_smoothing",), lambda v: v % 2 == 1, "an odd number of pixels, 1 for none")
        told = "in [0, 1], 8-bit levels divided by 255"
        require_each(self, ("fgsm_eps", "pgd_eps", "autoattack_eps", "transfer_eps"), lambda v: 0 <= v <= 1, told)
        require_each(self, ("patchfool_bound",), lambda v: v is None or 0 <= v <= 1, told)
        require_each(self, ("cw_budget",), lambda v: v >= 0, ">= 0")
        require(self.protocol in ("pixels", "authors"), "protocol", "pixels or authors", self.protocol)
