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
# # 03 · The ε-approximate nullspace
#
# **Claim.** C7, first half: before finetuning, noise is hard to bring below ε = .03. In addition: does the paper's stopping test, which uses one batch, carry over to other images? And how large may the norm be before a noise leaves the set, along learned, permuted and random directions?
#
# *Paper: Sections 4 and 5.4, Eqs. (5), (7), (8), arXiv:2403.10476.* A noise is ε-approximate if the mean squared l2 gap between softmax vectors with and without it is below ε.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt

import nslib
from nslib import plots
from nslib.analysis.epsilon import eps_noises, reach_summary, reach_table, stopping_table
from nslib.intervals import share_estimate
from nslib.study.experiment import open_experiment

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("03_approximate_nullspace", settings)
study = settings.approximate
settings.models, settings.heldout, settings.images, study

# %% [markdown]
# ## Learning until inside
# For each ε and start the noise is learned twice from the same start with the same batches: stopped by its batch alone, as the authors do, and by images held out from learning. Both are then measured on images that neither saw.

# %%
lab = open_experiment(settings)
noises = eps_noises(lab.model, lab.pool, study, seed=settings.seed)
stopping = stopping_table(lab.model, lab.clean, noises)
record.table("stopping", stopping)
stopping.drop(columns=["low", "high", "n", "seeds"]).rename(columns={"value": "gap_fresh"}).round(4)

# %% [markdown]
# ## The search, step by step
# Norm and gap of the first start. Dots are held-out tests: they are run only when the batch passes, and less and less often as the search goes on; a test that can no longer pass is broken off, and its dot is a lower bound. All three searches have one start and the same batches, so that a line is hidden by those of larger ε as long as they go on.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.0, 2.4))
for eps in study.eps:
    trace = noises[eps, "heldout", 0].trace
    (line,) = left.plot(trace.gap, label=f"ε = {eps:g}")
    left.plot([t[0] for t in trace.tests], [t[1] for t in trace.tests], "o", color=line.get_color())
    left.axhline(eps, color=line.get_color(), linewidth=0.6, linestyle=":")
    right.plot(trace.norm, color=line.get_color())
left.set(xlabel="step", ylabel="MSE probability (batch)", yscale="log")
right.set(xlabel="step", ylabel="norm of the noise")
plots.legend_above(figure, left)
plots.caption(
    figure,
    f"{lab.model.name}, one start; dots: held-out tests, n = {len(lab.pool.heldout)}, bounds from below where given up; dotted: ε",
)
record.figure("trace", figure, None)

# %% [markdown]
# ## Is one batch enough to stop by?
# The MSE probability on fresh images, divided by ε: above 1 the search stopped too early, for the noise is not in the ε set. Bars: the mean over starts; whiskers: smallest and largest start.

# %%
stopping["ratio"] = stopping.value / stopping.eps
ratio = stopping.groupby(["eps", "stop_on"]).ratio.agg(value="mean", low="min", high="max").reset_index()
figure, ax = plt.subplots(figsize=(4.0, 2.3))
plots.bars(ratio, ax, x="eps", by="stop_on").set(xlabel="ε", ylabel="gap on fresh images / ε")
ax.axhline(1, color="0.3", linewidth=0.8)
plots.legend_above(figure, ax)
plots.caption(
    figure,
    f"n = {len(lab.clean)} images; bars: {plots.mean_of(study.starts)}; colour: what stopped the learning",
)
record.figure("stopping_ratio", figure, ratio)
ratio.round(3)

# %% [markdown]
# ## How far the set reaches
# The norm at which the ray along a direction first leaves the set, on fresh images; whiskers: smallest and largest start. The controls are the same noise permuted and a Gaussian direction. Each ε has noises of its own, so that the bars of two ε are of different rays: one for a larger ε may be shorter.

# %%
judges = lab.clean[: study.reach_images]
reach = reach_table(lab.model, judges, noises, seed=settings.seed)
summary = reach_summary(reach)
figure, ax = plt.subplots(figsize=(4.0, 2.3))
plots.bars(summary, ax, x="eps").set(xlabel="ε", ylabel="norm at the boundary")
plots.legend_above(figure, ax)
plots.caption(figure, f"n = {len(judges)} images; bars: {plots.mean_of(study.starts)}")
record.figure("reach", figure, reach)
summary.round(2)

# %% [markdown]
# ## Verdicts
# C7 by the rule written in `data/reference/claims.csv`: the share of starts that reach ε = .03 on held-out images. Where noise is not learned with the paper's limit and number of steps it is not given.

# %%
as_paper = study.noise.limit == 3 and study.noise.steps >= 3000  # else the claim is not the paper's
paper_eps = stopping[(stopping.eps == 0.03) & (stopping.stop_on == "heldout")]
record.judge(
    "C7", "before", [share_estimate(paper_eps.converged, seeds=study.starts)] if as_paper and len(paper_eps) else []
)
inside = stopping[stopping.converged & (stopping.stop_on == "heldout")]
assert (inside.gap_heldout < inside.eps).all()
assert reach.norm.gt(0).all()
record.save(mean_steps=stopping.groupby(["eps", "stop_on"]).steps.mean().reset_index().values.tolist())
record.summary()

# %% [markdown]
# How much the batch underestimates the gap depends on ε: at `laptop`, averaged over starts, noise that passes on its batch has 1.7 times the required gap at ε = .01, 1.4 times at .03 and about that gap at .1. Stopping on held-out images gives no larger gap than stopping on the batch from the same start, and at `laptop` and `full` on average none above ε, which is why later notebooks do so, but for one control.
# They are no guarantee: at `imagenet-mini`, with batches of 16 images, the noise has 2.3 times ε = .03 when its batch stops it; held-out images had not stopped it after 120 steps, at 1.8 times.
# Whether noise is hard to bring inside before finetuning depends on the model and on the size of the start. At `full` it is not: all of ten starts reach ε = .03, in 27 steps on average, so that this half of C7 does not hold; `laptop`, with three starts, and `gpu`, with one, cannot tell. The set reaches 2.4 times as far along learned noise as along the same permuted: [figures/full](../figures/full/index.html).
