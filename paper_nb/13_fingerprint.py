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
# # 13 · The nullspace as a fingerprint
#
# The paper proposes, without an experiment, to keep the nullspace of a model as a key by which its weights can be told later. How reliable is it? Are other seeds and models mistaken for it, and does it survive finetuning and rotations?
#
# *Paper: Section 6, "model patenting", arXiv:2403.10476.* It is no claim with a verdict. `leak` is how much of the key an embedding sees, relative to what random weights see of it: 0 for the key's own model, about 1 for weights that know nothing of each other. Below .01 a suspect is `identified`. Angles, in degrees, are the principal ones between what the suspect's embedding sees and what that of the key's model saw: two nullspaces as large as these share directions anyway.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import pandas as pd

import nslib
from nslib import plots
from nslib.analysis import fingerprint
from nslib.pretrain import accuracy
from nslib.runtime import generator
from nslib.study import experiment, jobs, traces

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("13_fingerprint", settings)
study = settings.fingerprint
settings.models, settings.weights, study

# %% [markdown]
# ## Key, owner, rotations
# If the owner's tokens are rotated, it computes the same up to that rotation and is still identified. A rotation of the pixels moves the nullspace, and the model with it: no later layer can undo it.

# %%
bench = nslib.open_bench(settings)
model, draws = bench.model, generator(settings.seed)
key = fingerprint.make_key(model)
suspects = {"itself": model} | {
    f"{s} rotated": fingerprint.rotated(model, s, generator=draws) for s in ("tokens", "pixels")
}
table = fingerprint.fingerprint_table(key, suspects)
record.table("suspects", table)
table.drop(columns="why").round(4)

# %% [markdown]
# ## Strangers
# Who is taken for the owner? The architecture from other seeds, untrained; the owner's own patch weight with its numbers in another order; other seeds trained on the owner's task, on other images, to the accuracy in the table; and the other models of this profile, whatever they were trained on (at `imagenet` the other pretrained weights). Patches of another size can be told apart without a key.

# %%
alike = {"img_size": model.image_shape[1], "num_classes": model.num_classes}
seeds = range(1000, 1000 + study.untrained)
named = {("untrained seed", f"seed {s}"): nslib.load_model(model.name, "random", seed=s, **alike) for s in seeds}
orders = range(study.permuted)
named |= {("permuted weight", f"order {i}"): fingerprint.shuffled(model, generator=draws) for i in orders}
trained = {f"trained {i}": experiment.open_stranger(settings, i) for i in range(1, study.trained + 1)}
named |= {("trained seed", name): stranger for name, stranger in trained.items()}

# %%
others = [experiment.open_model(settings, name) for name in settings.models[1:]]
others += [bench.surrogate] if isinstance(bench.surrogate, nslib.StagedViT) else []
named |= {("other model", other.name): other for other in others}
strangers = fingerprint.fingerprint_table(key, {name: stranger for (_, name), stranger in named.items()})
images, labels = bench.take("val", 0, min(200, settings.images))
reached = {name: accuracy(stranger, images, labels) for name, stranger in trained.items()}
strangers = strangers.assign(kind=[kind for kind, _ in named], accuracy=strangers.suspect.map(reached))
record.table("strangers", strangers)
rates = fingerprint.false_positives(strangers)
record.table("false_positives", rates)
print(f"owner: {accuracy(model, images, labels):.1%} of {len(labels)} images")
strangers[strangers.kind.isin(["trained seed", "other model"])].drop(columns="largest_angle").round(4)

# %% [markdown]
# The row `all` is easy to pass: untrained and permuted weights know nothing of the owner's images, so that not taking them for it is trivial. What counts are the trained ones, and those are few.

# %%
rates.drop(columns="seeds").round(4)

# %% [markdown]
# ## Finetuned
# The models that notebook 05 finetunes from the owner: are they known again? `reach`: how far the patch weight moved, relative to its norm.

# %%
tuned = {objective: jobs.finetuned(bench, settings, objective).model for objective in traces.TRACED}
finetunings = fingerprint.fingerprint_table(key, tuned)
finetunings = finetunings.assign(reach=[fingerprint.reach(model, other) for other in tuned.values()])
record.table("finetunings", finetunings)
print(f"{settings.finetune.rounds * settings.finetune.steps} updates each, at lr {settings.finetune.lr:g}")
finetunings.drop(columns="why").round(6)

# %% [markdown]
# ## Changed weights
# The patch weight moved at random by a share of its norm, beside what the finetunings did. The leak of a random move grows with its square; the largest angle gives up first, since it belongs to the direction that the owner itself hardly sees.

# %%
sizes = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
changed = {str(s): fingerprint.moved(model, s, generator=draws) for s in sizes}
moves = fingerprint.fingerprint_table(key, changed).assign(size=sizes, noise="at random")
tuned_moves = finetunings.rename(columns={"reach": "size"}).assign(noise="finetuned: " + finetunings.suspect)
drawn = pd.concat([moves, tuned_moves])
nearest = strangers[strangers.leak == strangers.leak.min()].iloc[0]
angles = moves.melt("size", ["median_angle", "largest_angle"], "angle")

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6))
plots.curves(moves, axes[0], x="size", y="leak").set(yscale="log", ylabel="leak")
axes[0].plot(tuned_moves["size"], tuned_moves.leak, "k+", markersize=7, label="finetunings")
axes[0].axhline(fingerprint.THRESHOLD, color="0.3", linewidth=0.8, linestyle=":", label="threshold")
axes[0].axhline(nearest.leak, color="0.3", linewidth=0.8, linestyle="-.", label=f"nearest stranger: {nearest.suspect}")
plots.curves(angles.replace("_angle", " angle", regex=True), axes[1], x="size", by="angle")
axes[1].set(ylabel="principal angle, degrees")
axes[1].legend(loc="upper left")
for ax in axes:
    ax.set(xscale="log", xlabel="move, relative to the weight")
plots.legend_above(figure, axes[0], columns=2)
plots.caption(
    figure, f"{model.name}; one random move for each size; {len(tuned_moves)} finetunings, {len(strangers)} strangers"
)
record.figure("moves", figure, drawn)

# %%
by_name = table.set_index("suspect")
assert by_name.identified["itself"]
assert by_name.identified["tokens rotated"]
assert not by_name.identified["pixels rotated"]
by_kind = rates.set_index("kind")
assert by_kind.value["untrained seed"] == by_kind.value["permuted weight"] == 0
assert (finetunings.leak < by_kind.smallest_leak["all"]).all()
every = by_kind.loc["all"]
record.save(key_dim=key.shape[1], false_positives=every.value, strangers=int(every.n), threshold=fingerprint.THRESHOLD)
pd.concat([table, finetunings.drop(columns="reach"), strangers.drop(columns=["kind", "accuracy"]).tail(3)]).drop(
    columns="why"
).round(4)

# %% [markdown]
# The key tells its owner from the few trained strangers tested, too few to bound the rate of false positives, and survives finetuning, rotations of the tokens, and moves of the weight by several per cent of its norm.
# Trained models are nearer to each other than chance, perhaps because all of them see smooth patches: at `full` two trained strangers, of 75.5 and 28 % accuracy, have a leak of .20 and .28, and DeiT-Ti has .22 of the key of ViT-Ti at `imagenet-mini`, where untrained ones have 1. So the threshold has to be set against trained strangers, not against random ones. Models finetuned from the owner have at most .0014, after 800 updates at `full`: [figures/full](../figures/full/index.html).
