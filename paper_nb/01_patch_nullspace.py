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
# # 01 · The nullspace of the patch embedding
#
# **Claims.** C1: the patch embedding has a non-trivial nullspace, of Table 1's dimension, when a patch (C channels, side P) has more values than a token, C P² > D. C2: noise from it changes neither the tokens nor the output.
#
# *Paper: Section 3.1, Eqs. (1)-(2), Table 1, Figure 2, arXiv:2403.10476.*

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import torch

import nslib
from nslib import plots
from nslib.analysis.linear import amplitude_sweep, table1, token_change
from nslib.intervals import Estimate
from nslib.nullspace.survey import survey_timm
from nslib.study.experiment import open_experiment

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("01_patch_nullspace", settings)
settings.models, settings.weights, settings.patch

# %% [markdown]
# ## The basis
# The basis consists of the weight's singular vectors (the model's 1/std folded in) with singular value zero. Rank and null dimension add up to C P².

# %%
lab = open_experiment(settings)
null = nslib.PatchNullspace(lab.model)
orthonormal = (null.basis.T @ null.basis - torch.eye(null.dim, dtype=torch.float64)).abs().max().item()
print(f"{lab.model.name}: {null.matrix.shape[1]} = rank {null.rank} + null dimension {null.dim}")
print(
    f"smallest singular value {null.singular_values[-1]:.3g}, zero up to {null.tol:.2g}; basis orthonormal within {orthonormal:.0e}"
)

# %% [markdown]
# ## Table 1
# All eight architectures of the paper. `source` says whether a row was measured on pretrained weights or on random ones of the same architecture. Where C P² = D (base/16) only trained weights decide: with random ones that row is not testable, and not failed.

# %% tags=["nbval-check-output"]
dimensions = table1(settings.weights)
record.table("table1", dimensions)
dimensions

# %% [markdown]
# ## Figure 2: noise that leaves everything as it was
# The title of a picture tells the largest absolute value of its noise, by default half the range of a pixel. The sum is shown clipped to [0, 1], and given to the model as it is; notebook 09 has noise that stays inside. The largest change of any logit is at the level of rounding, in 32 and in 64 bits.

# %%
generator = torch.Generator().manual_seed(settings.seed)
images, _ = lab.source.take("val", settings.patch.images)
noise = null.sample(len(images), peak=settings.patch.peak, generator=generator).to(images)
tokens = token_change(
    lab.model, images, null.sample(len(images), peak=settings.patch.peak, generator=generator, dtype=torch.float64)
)
figure, axes = plt.subplots(1, 3, figsize=(5.5, 2.0))
titles = ("image", f"nullspace noise, peak {settings.patch.peak:g}", "image + noise, same logits")
for ax, picture, title in zip(axes, (images[0], plots.symmetric(noise[0]), images[0] + noise[0]), titles, strict=True):
    plots.picture(picture.cpu(), ax, title)
if settings.data.kind == "shapes":
    record.pictures("figure2", figure)

# %% [markdown]
# ## How strong may it be?
# Any strength will do, up to rounding, which grows with the amplitude. The control is noise of the same norm from the orthogonal complement.

# %%
peaks = dict.fromkeys((*settings.patch.amplitudes, settings.patch.peak))
sweep = amplitude_sweep(lab.model, null, images, tuple(peaks), generator=generator)
figure, axes = plt.subplots(1, 2, sharey=True, figsize=(5.5, 2.2))
for ax, (bits, rows) in zip(axes, sweep.groupby("bits"), strict=True):
    plots.curves(rows, ax, x="peak").set(xscale="log", yscale="log", title=f"float{bits}")
axes[0].set_ylabel("largest change of a logit")
plots.legend_above(figure, axes[0])
plots.caption(
    figure,
    f"x: peak of the nullspace noise, 1 = range of a pixel; the complement noise has its norm; n = {len(images)}",
)
record.figure("amplitude", figure, sweep)

# %%
wide = sweep.pivot_table(index="peak", columns=["bits", "noise"], values="value")
wide.map(lambda v: f"{v:.1e}")

# %% [markdown]
# ## Every plain ViT of timm
# From the architecture alone: the least null dimension, max(0, C P² − D), by patch side and width.

# %% tags=["nbval-check-output"]
survey = survey_timm()
record.table("survey", survey)
blind = survey[survey.null_dim > 0]
print(f"{len(blind)} of {len(survey)} have a non-trivial nullspace; the largest has {survey.null_dim.max()} dimensions")
survey.groupby("patch_size").agg(
    models=("model", "size"), with_nullspace=("null_dim", lambda d: (d > 0).sum()), largest=("null_dim", "max")
)

# %% [markdown]
# ## Verdicts
# By the rules that stand in `data/reference/claims.csv`; that for the logits is for a peak of .5.

# %%
logits = sweep.query("noise == 'nullspace' and bits == 32 and peak == @settings.patch.peak").value.item()
decided = dimensions[dimensions.decides]
record.judge("C1", "dimensions", [Estimate.exact(d) for d in decided.null_dim - decided.printed])
record.judge("C2", "tokens", Estimate.exact(tokens, len(images)))
record.judge("C2", "logits", Estimate.exact(logits, len(images)) if settings.patch.peak == 0.5 else [])
assert orthonormal < 1e-12
assert null.rank + null.dim == null.matrix.shape[1]
record.save(null_dim=null.dim, null_models=len(blind), surveyed=len(survey))
record.summary()

# %% [markdown]
# The first layer of many ViTs, six of the paper's eight by its Table 1 (with random weights five) and 46 of those of timm, is blind to a whole subspace of images, and what lies in it can be found by one SVD.
# Nothing needs to be learned for this invariance, and finetuning the layers above cannot change it.
