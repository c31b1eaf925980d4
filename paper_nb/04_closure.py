# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Is the ε-approximate nullspace closed?
#
# **Claims.** C15: a learned noise scaled by |s| ≤ 1 stays ε-approximate. C16: convex combinations of two of them stay below .033, a little above ε = .03.
#
# *Paper: Appendix D, Figure 5, arXiv:2403.10476.* An exact nullspace is closed under all of it. Here everything is judged on images that neither taught nor stopped the noises, beside the same noises permuted; and further than in the paper: plain sums, more members, and how many noises may be mixed freely.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu or imagenet
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt

import nslib
from nslib import plots
from nslib.analysis import closure
from nslib.experiment import open_experiment
from nslib.intervals import Estimate
from nslib.runtime import generator

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("04_closure", settings)
study, eps = settings.closure, settings.closure.noise.eps
settings.models, study

# %% [markdown]
# ## Noises from different starts
# Each is learned until images held out from learning say that it is inside; those that never get there are left out.

# %%
lab = open_experiment(settings)
clean = lab.clean[: study.images]
noises = closure.closure_noises(lab.model, lab.pool, study, seed=settings.seed)
count = len(noises["learned"])
norms = noises["learned"].flatten(1).norm(dim=1)
print(f"{count} of {study.noises} noises inside ε = {eps}, norm {norms.min():.1f} to {norms.max():.1f}")

# %% [markdown]
# ## Figure 5a: one noise, scaled
# Lines: mean over noises and images. Bands: from the 5 % to the 95 % quantile of the noises.

# %%
scales = closure.scale_table(lab.model, clean, noises, closure.ticks(2, study.step), eps)
figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.4))
bands = scales.assign(low=scales.band_low, high=scales.band_high)
plots.curves(bands, axes[0], x="scale").set(xlabel="scale", ylabel="MSE probability")
plots.curves(scales[["noise", "scale", "outside"]], axes[1], x="scale", y="outside").set(
    xlabel="scale", ylabel="share of noises beyond ε"
)
axes[0].axhline(eps, color="0.3", linewidth=0.8, linestyle=":")
plots.legend_above(figure, axes[0])
plots.caption(figure, f"{count} noises, n = {len(clean)} images; bands: 5 % to 95 % of the noises; dotted: ε = {eps:g}")
record.figure("figure5a", figure, scales)
scales[scales.scale.abs().isin([0.5, 1, 2])].pivot(index="scale", columns="noise", values=["value", "outside"]).round(4)

# %% [markdown]
# ## Figure 5b: two noises, αv + βv′
# Mean over pairs, each judged on the next few images in turn, which blurs the share beyond ε; the tables of lines have it on all images. Contours at ε and at .033; dashed: α + β = 1, whose middle piece holds the convex combinations.

# %%
pairs = closure.draw_pairs(count, min(study.pairs, count * (count - 1) // 2), generator=generator(settings.seed))
ticks = closure.ticks(1.5, study.grid_step)
shown = {"learned": pairs, "permuted": pairs[: study.control_pairs]}
grid = closure.grid_table(lab.model, clean, noises, shown, ticks, eps, images=study.grid_images)
grid[grid.alpha.isin([-1, 0, 1]) & grid.beta.isin([-1, 0, 1])].round(4)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8), sharey=True)
for ax, (kind, rows) in zip(axes, grid.groupby("noise", sort=False), strict=True):
    square = rows.pivot(index="beta", columns="alpha", values="value")
    shades = ax.pcolormesh(ticks, ticks, square, vmin=0, vmax=grid.value.quantile(0.95), cmap="mako", shading="nearest")
    ax.contour(ticks, ticks, square, levels=[eps, 0.033], colors=["white", "tab:orange"], linewidths=1)
    ax.plot([-0.5, 1.5], [1.5, -0.5], "--", color="0.8", linewidth=0.8)
    title = f"{kind}, {rows.pairs.iloc[0]} pairs, n = {rows.n.iloc[0]}"
    ax.set(title=title, xlabel="α", ylabel="β", aspect="equal")
figure.colorbar(shades, ax=axes, label="MSE probability")
plots.caption(figure, f"a pair: {study.grid_images} images; white: ε = {eps:g}, orange: .033; dashed: α + β = 1")
record.figure("figure5b", figure, grid)

# %% [markdown]
# ## Convex combinations
# Of two, along α + β = 1 between the noises; then the sum of two, and more members with weights drawn uniformly.

# %%
line = closure.line_table(lab.model, clean, noises, pairs, [i / 10 for i in range(11)], eps)
record.table("line", line)
further = closure.further_table(lab.model, clean, noises, pairs, study, seed=settings.seed)
record.table("further", further)
two = line[line.alpha == 0.5].assign(combination="half of each of 2").drop(columns="alpha")
further.merge(two, how="outer").set_index(["combination", "noise"])[["value", "low", "high", "outside", "n"]].round(4)

# %% [markdown]
# ## How many may be mixed freely?
# k learned noises mixed with random coefficients, scaled to the median learned norm: the share of combinations that stay inside. With coefficients of either sign, 95 % and more would mean that the set holds nearly a ball of a k-dimensional space; with positive ones, that it is a cone as far out as the noises are.

# %%
span = closure.span_table(lab.model, clean, noises, study, seed=settings.seed)
figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.4), sharey=True)
for ax, (sign, rows) in zip(axes, span.groupby("sign", sort=False), strict=True):
    plots.curves(rows, ax, x="k").set(xlabel="noises mixed, k", ylim=(-0.02, 1.02), title=f"coefficients: {sign}")
    ax.axhline(0.95, color="0.3", linewidth=0.8, linestyle=":")
axes[0].set_ylabel(f"share inside ε = {eps:g}")
plots.legend_above(figure, axes[0])
plots.caption(
    figure,
    f"{study.draws} combinations, n = {len(clean)} images; bands: 95 % interval; norm {norms.median():.1f}; dotted: 95 %",
)
record.figure("span", figure, span)
largest = {sign: closure.largest_span(rows) for sign, rows in span[span.noise == "learned"].groupby("sign")}
print(f"largest k with 95 % inside: {largest}")

# %%
learned, convex = scales[(scales.noise == "learned") & (scales.scale.abs() <= 1)], line[line.noise == "learned"]
estimates = ["value", "low", "high", "n", "seeds"]
record.judge("C15", "scale", [Estimate(*row) for row in learned[estimates].itertuples(index=False)])
record.judge("C16", "convex", [Estimate(*row) for row in convex[estimates].itertuples(index=False)])
assert scales[scales.scale == 0].value.max() < 1e-6
assert scales.value.between(0, 2).all()
assert grid.value.between(0, 2).all()
record.save(noises=count, norms=norms.tolist(), largest_span=largest)
record.summary()

# %% [markdown]
# Convex combinations of learned noises stay in; permuted ones of equal norm are out at once, so that it is the learned directions that are closed, not small noise as such.
# It is no space: the opposite of a noise and twice a noise may be outside, and the tables say by how much.
