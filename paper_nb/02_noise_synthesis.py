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
# # 02 · Noise that the encoder does not notice
#
# **Claims.** C4: minimising Eq. (4) finds noise on the patch tokens under which at least 98 % of predictions stay, with a small MSE probability, on images that it was not learned from. C5: the same noise with its elements permuted does much more harm. C6: its norm grows with λ.
#
# *Paper: Section 3.3, Eqs. (3)-(4), Figure 3, arXiv:2403.10476.* The paper has no interval, and no random direction as a further control; here are both.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import spearmanr

import nslib
from nslib import palette, plots
from nslib.analysis.synthesis import lambda_sweep
from nslib.intervals import Estimate
from nslib.report.reference import printed
from nslib.study.experiment import open_experiment

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("02_noise_synthesis", settings)
settings.models, settings.pool, settings.images, settings.synthesis

# %% [markdown]
# ## Learning
# One noise v, shared by all images, for each λ: it starts uniform in ±limit and minimises ‖f(u + v) − f(u)‖ − λ log ‖v‖ over the pool, f being the logits of tokens u. Only the noise is trained.

# %%
sweeps = {}
for name in settings.models:
    lab = open_experiment(settings, name)
    sweeps[name] = lambda_sweep(lab.model, lab.pool, lab.clean, settings.synthesis, seed=settings.seed)
table = pd.concat([s.table for s in sweeps.values()])
norms = pd.concat([s.norms for s in sweeps.values()])
shown = table.pivot_table(index=["model", "regularization"], columns=["quantity", "noise"], values="value")
shown.round(4)

# %% [markdown]
# ## Figure 3a: predictions with the noise, and with its controls
# `learned` is measured on images held out from learning, `pool` on some of its own; `permuted` holds the same elements in another order; `random` is a Gaussian direction. All have the same norm. `match`: predictions unchanged; `gap`, the MSE probability: mean over images of ‖change of the softmax output‖². Bands are 95 % intervals over images. Dotted: the paper's bound of the gap under learned noise, .0015, which decides the second part of C4.

# %%
for name, rows in table.groupby("model", sort=False):
    figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.4))
    for ax, quantity in zip(axes, ("match", "gap"), strict=True):
        plots.curves(rows[rows.quantity == quantity], ax, x="regularization").set_xlabel("λ")
    axes[0].set(title=name, ylabel="predictions unchanged")
    axes[1].set(ylabel="MSE probability", yscale="log")
    axes[1].axhline(0.0015, color="0.3", linewidth=0.8, linestyle=":")
    plots.legend_above(figure, axes[0])
    plots.caption(
        figure,
        f"n = {rows.n.max()} images (pool: {rows[rows.noise == 'pool'].n.max()}), starts: {rows.seeds.max()}; bands: 95 % interval over images",
    )
    record.figure(f"figure3a_{name}", figure, rows)

# %% [markdown]
# Three numbers for each curve, above those read off the paper's figure: predictions unchanged at the smallest and at the largest λ, and the largest MSE probability. For the paper's learned noise the last is a bound, not a value.

# %%
wide = table[table.noise.isin(["learned", "permuted"])].pivot(
    index=["model", "noise", "regularization"], columns="quantity", values="value"
)
figure3a = wide.groupby(["model", "noise"], sort=False).agg(
    match_smallest=("match", "first"), match_largest=("match", "last"), gap_largest=("gap", "max")
)
record.table("figure3a", figure3a.reset_index())
pd.concat({"ours": figure3a.reset_index(), "paper": printed("figure3a")}).round(4)

# %% [markdown]
# ## Figure 3b: the norm against λ
# The scale of tokens differs between models, so norms are shown relative to the one at the smallest λ; grey: the paper's two models, read off its figure.

# %%
figure, ax = plt.subplots(figsize=(4.0, 2.4))
grey = [{"color": palette.COLOURS["paper"], "linestyle": line} for line in ("--", ":")]
for whose, rows_of, styles in ((", paper", printed("figure3b"), grey), ("", norms, [{}] * norms.model.nunique())):
    for (name, rows), style in zip(rows_of.groupby("model", sort=False), styles, strict=True):
        mean = rows.groupby("regularization").norm.mean()
        ax.plot(mean.index, mean / mean.iloc[0], marker="o", label=name + whose, **style)
ax.set(xlabel="λ", ylabel="norm, relative to smallest λ")
ax.legend()
plots.caption(figure, f"ours: mean of the starts, {norms.start.nunique()} of each model")
record.figure("figure3b", figure, norms)

# %%
norms.groupby(["model", "regularization"]).agg(norm=("norm", "mean"), steps=("steps", "mean")).round(2)

# %% [markdown]
# ## Verdicts
# By the rules written in `data/reference/claims.csv`, at every λ. At the smoke profile learning is cut short, and they are not given.

# %%
curves = {q: [s.estimates("learned", q) for s in sweeps.values()] for q in ("match", "gap")}
curves["damage"] = [s.damage for s in sweeps.values()]
judged = {q: {name: e for curve in each for name, e in curve.items()} for q, each in curves.items()}
swept = [rows for _, rows in norms.groupby("model") if rows.regularization.nunique() > 1]
rank = [spearmanr(rows.regularization, rows.norm).statistic for rows in swept]
record.judge("C4", "match", judged["match"])
record.judge("C4", "gap", judged["gap"])
record.judge("C5", "gap", judged["damage"])
record.judge("C6", "norm", [Estimate.exact(r, len(settings.synthesis.lambdas)) for r in rank])
assert table.value.between(0, 2).all()
assert (norms.norm > 0).all()
record.save()
record.summary()

# %% [markdown]
# The difference between learned and permuted noise of equal norm says that direction matters, not size alone. Not for ViT-B/32 at `gpu`, where learning did not converge in 120 steps: permuted noise does less harm there (at λ = 2 a gap of .009 against .018); for ViT-S/32 it does more (.078 against .007).
# At `full` 98.8 % of the predictions stay under noise learned at λ = 2, and 54 % under the same noise permuted; the MSE probability, .0026, is above the paper's: [figures/full](../figures/full/index.html).
