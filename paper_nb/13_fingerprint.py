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
# # 13 · The nullspace as a fingerprint
#
# The paper proposes, without an experiment, to keep the nullspace of a model as a key by which its weights can be told later. How sure is it? What do other seeds, other models, changed weights and rotations do to it?
#
# *Paper: Section 6, "model patenting", arXiv:2403.10476.* It is no claim with a verdict. `leak` is how much of the key an embedding sees, relative to what random weights see of it: 0 for the key's own model, about 1 for weights that know nothing of each other.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu or imagenet
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import pandas as pd

import nslib
from nslib import plots
from nslib.analysis import fingerprint
from nslib.experiment import open_bench
from nslib.models import StagedViT
from nslib.runtime import generator

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("13_fingerprint", settings)
settings.models, settings.weights

# %% [markdown]
# ## Key, owner, suspects
# The owner rotated in its tokens computes the same up to that rotation, and cannot hide by it. A rotation of the pixels moves the nullspace, and the model with it: no later layer can undo it.

# %%
bench = open_bench(settings)
model, draws = bench.model, generator(settings.seed)
key = fingerprint.make_key(model)
suspects = {"itself": model} | {
    f"{s} rotated": fingerprint.rotated(model, s, generator=draws) for s in ("tokens", "pixels")
}
if isinstance(bench.surrogate, StagedViT):
    suspects[bench.surrogate.name] = bench.surrogate
table = fingerprint.fingerprint_table(key, suspects)
record.table("suspects", table)
table.round(4)

# %% [markdown]
# ## Strangers
# The same architecture from other seeds, untrained: how often is one of them taken for the owner?

# %%
size = model.image_shape[1]
strangers = {}
for seed in range(20):
    strangers[f"seed {seed}"] = nslib.load_model(model.name, "random", img_size=size, num_classes=10, seed=1000 + seed)
others = fingerprint.fingerprint_table(key, strangers)
record.table("strangers", others)
rate = fingerprint.false_positives(key, strangers)
print(
    f"leak {others.leak.min():.3f} to {others.leak.max():.3f}; taken for the owner: {rate.value:.0%}, at most {rate.high:.0%}"
)

# %% [markdown]
# ## Changed weights
# The patch weight moved at random by a share of its norm, as a finetuning might. The leak grows with the square of the move; the largest angle gives up first, since it belongs to the direction that the owner itself hardly sees.

# %%
sizes = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
changed = {str(s): fingerprint.moved(model, s, generator=draws) for s in sizes}
moves = fingerprint.fingerprint_table(key, changed).assign(size=sizes)
figure, axes = plt.subplots(1, 2, figsize=(6.0, 2.4))
plots.curves(moves.assign(noise="moved weights"), axes[0], x="size", y="leak")
axes[0].axhline(fingerprint.THRESHOLD, color="0.3", linewidth=0.8, linestyle=":")
axes[0].set(xscale="log", yscale="log", xlabel="move, relative to the weight", ylabel="leak")
angles = moves.melt("size", ["median_angle", "largest_angle"], "angle")
plots.curves(angles.replace("_angle", "", regex=True), axes[1], x="size", by="angle")
axes[1].set(xscale="log", xlabel="move, relative to the weight", ylabel="principal angle, degrees")
plots.legend_above(figure, axes[1])
plots.caption(figure, f"{model.name}; one random move for each size; dotted: threshold {fingerprint.THRESHOLD:g}")
record.figure("moves", figure, moves)

# %%
by_name = table.set_index("suspect")
assert by_name.identified["itself"]
assert by_name.identified["tokens rotated"]
assert not by_name.identified["pixels rotated"]
assert rate.value == 0
record.save(key_dim=key.shape[1], false_positives=rate.value, strangers=rate.n, threshold=fingerprint.THRESHOLD)
pd.concat([table, others.head(3), moves.drop(columns="size")]).round(4)

# %% [markdown]
# The key tells its owner from strangers with room to spare, and survives rotations of the tokens and moves of the weight by several per cent of its norm.
# Trained models can be nearer to each other than chance, because all of them see smooth patches (profile imagenet: DeiT-Ti leaks .22 of the key of ViT-Ti): the threshold has to be set against trained strangers, not against random ones.
