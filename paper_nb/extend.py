# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Extend · Your own ViT, images and objective
#
# A ViT of timm, a data set of torch and a loss of your own, in the place of those of the paper: its nullspace, a noise that it ignores, and finetuning with that noise beside the same finetuning without it.
#
# *Paper: Eqs. (4)-(8), Algorithm 1, arXiv:2403.10476.* This notebook judges no claim. Its images are the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI, E. Alpaydin and C. Kaynak 1998), so that nothing is fetched; at `smoke` it takes seconds, too few updates to tell two methods apart.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full or gpu
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"finetune.rounds": 20, "finetune.noise.limit": 6.0}

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import nslib
from nslib import plots
from nslib.finetune.objectives import OBJECTIVES, Objective

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)

# %% [markdown]
# ## A ViT
# Any plain `timm.models.VisionTransformer`, such as `timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=True, img_size=224, num_classes=10)`. `StagedViT` cuts it where the noise is added and normalises inside, so that images stay in [0, 1]. Here it is the shipped one, whose ten classes are drawings.

# %%
vit = nslib.load_model().vit
untrained = nslib.StagedViT(vit, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine").eval()
null = nslib.PatchNullspace(untrained)
f"images {untrained.image_shape}, tokens {untrained.token_shape}; {null.dim} of {null.matrix.shape[1]} dimensions of a patch change nothing"

# %% [markdown]
# ## Images
# Anything with a length and items `(image, label)`, such as `torchvision.datasets.CIFAR10(root)`: PIL images are brought to the model's size, tensors have it already. `train` is for finetuning and, its first images, for the noise; `val` is for evaluation.

# %%
digits = load_digits()
shuffled = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(settings.seed))
small = torch.tensor(digits.images / 16, dtype=torch.float32)[shuffled].unsqueeze(1)
images = F.interpolate(small, untrained.image_shape[1:], mode="bilinear").expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)[shuffled]
splits = {"train": TensorDataset(images[:1297], labels[:1297]), "val": TensorDataset(images[1297:], labels[1297:])}
source = nslib.DatasetSource(untrained, splits)
source.count("train"), source.count("val")

# %% [markdown]
# ## Training without noise
# Objective `plain` is an ordinary finetuning. A head for other classes comes from `nslib.models.reset_head(model, N)`.

# %%
recipe = settings.finetune
model = nslib.finetune_model(
    untrained, source, replace(recipe, objective="plain", rounds=1, steps=100, lr=1e-3, lr_min=1e-4)
).model
suite = replace(settings.suite, columns=("clean", "fgsm", "c"), images=500)
before = nslib.evaluate_model(model, source, suite, progress=False)
before.table().round(2)

# %% [markdown]
# ## A noise that it ignores
# Learned by Eq. (4) on the first images of `train`, and stopped as soon as it is inside the ε-approximate nullspace on the next ones, ε = .03. `limit` is how far its start reaches, in token units: a noise that stops at once began inside, and from a larger start a larger one is found.

# %%
pool = nslib.make_pool(model, source.take("train", recipe.pool + recipe.heldout).images, heldout=recipe.heldout)
noises = {}
for limit in (2.0, 6.0):
    start = torch.Generator().manual_seed(settings.seed)
    noises[limit] = nslib.learn_noise(model, pool, replace(recipe.noise, limit=limit), generator=start)
facts = ("steps", "norm", "gap_heldout", "match_heldout", "converged")
pd.DataFrame({limit: {name: getattr(found, name) for name in facts} for limit, found in noises.items()}).T

# %% [markdown]
# The larger one and its permutation on images that neither has seen. What is just inside ε on the 64 held-out images of `smoke` may be just outside on others.

# %%
clean = nslib.clean_pass(model, source.take("val", 500).images)
learned = noises[6.0].noise
tried = {"learned": learned, "permuted": nslib.permute(learned, generator=torch.Generator().manual_seed(0))}
measures = {"MSE probability": nslib.noise_gap, "same prediction": nslib.match_rate}
pd.DataFrame(
    {name: {kind: of(model, clean, noise) for kind, of in measures.items()} for name, noise in tried.items()}
).T

# %% [markdown]
# ## An objective
# A loss of the model, what it sees, and the settings. `noise="learned"` asks for a noise each round; `attack=` for adversarial images. This one asks in place of Eq. (7)'s second cross-entropy for the answers under noise to stay what they are.


# %%
def steady(model, view, cfg):
    """2 CE(f(x), y) + ||softmax f(x) - softmax f(x + v)||^2, f(x) fixed in the second term."""
    tokens = model.embed(view.images)
    answers, noised = model.logits_from_tokens(tokens), model.logits_from_tokens(tokens + view.noise)
    moved = (answers.softmax(1).detach() - noised.softmax(1)).square().sum(1).mean()
    return 2 * F.cross_entropy(answers, view.targets) + moved


OBJECTIVES["steady"] = Objective(steady, noise="learned")

# %% [markdown]
# ## Finetuning with the noise, and without
# All three start from the same model and see the same images in the same order. With `target="mine.safetensors"` each would go on where it was stopped, and leave a file that timm loads with its record beside it. Should the loss be changed, such a file is refused, for it is of another one. Differences to `plain` are in top-1 on the same images, with 95 % intervals; for `c`, whose error stands in the first table, in top-1 too. At `smoke` there are six updates.

# %%
larger = replace(recipe.noise, limit=6.0)
tuned = {}
for objective in ("plain", "nullspace", "steady"):
    done = nslib.finetune_model(model, source, replace(recipe, objective=objective, noise=larger))
    tuned[objective] = nslib.evaluate_model(done.model, source, suite, progress=False)
    norms = [round(fact.norm, 1) for found in done.history for fact in found.noises]
    print(f"{objective}: norms of the noises {norms or 'none'}")
plain = tuned.pop("plain")
compared = pd.concat(nslib.differences(found, plain).assign(model=name) for name, found in tuned.items())
compared[["model", "column", "difference", "difference_low", "difference_high", "n"]].round(2)

# %%
figure, ax = plt.subplots(figsize=(4.5, 2.4))
plots.differences(compared, ax)
ax.set(ylabel="difference to plain, points", title="Digits, differences in top-1")
plots.legend_above(figure, ax)

# %% [markdown]
# ## From the command line
# For images in folders `root/{train,val}/<class>/*.JPEG`: a model for their classes first, then two finetunings of it and their difference. Each command goes on where it was stopped, and all run on several GPUs or machines under `torchrun`. The settings are those of profile `imagenet` where none are given; its 5,120 images for the noise are too many for a small `train`, hence `pool` and `heldout`.
#
# ```bash
# SMALL="pool=512 heldout=256"
# nslib finetune --model TAG --weights FILE --imagenet root --num-classes 10 --objective plain --target base.safetensors --set $SMALL lr=1e-3
# nslib finetune --model TAG --weights base.safetensors --imagenet root --objective plain --target plain.safetensors --set $SMALL
# nslib finetune --model TAG --weights base.safetensors --imagenet root --objective nullspace --target noise.safetensors --set $SMALL noise.limit=6
# nslib evaluate --model TAG --weights noise.safetensors --against plain.safetensors --imagenet root --columns clean,fgsm,c
# ```
