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
# # 10 · One image disguised as another
#
# **Claim.** C17, second and third part: nullspace noise that draws an image towards another keeps the prediction, and the saliency maps.
#
# *Paper: Appendix F, Eq. (12), Figures 7-10, arXiv:2403.10476.* The paper shows a few images. Here many are counted, in 256 levels, and it is said which equalities are algebra and which are measured. As an independent judge, a network with another first layer looks at the same pictures.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu or imagenet
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import nslib
from nslib import plots
from nslib.analysis import photographs, pictures, saliency, watermark
from nslib.experiment import open_bench
from nslib.intervals import share_estimate

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("10_targeted_noise", settings)
settings.models, settings.watermark

# %% [markdown]
# ## Figure 7: source, target, and what is between
# Each image is drawn towards the one before it. The noise is all of the difference that the embedding does not see, as far as pixels stay in [0, 1].

# %%
bench, study = open_bench(settings), settings.watermark
model, null = bench.model, nslib.PatchNullspace(bench.model)
images, _ = bench.source.take("val", study.images)
source = pictures.eight_bit(images)
target = source.roll(1, 0)
legal = watermark.nearest_legal(null, source, target)
made = watermark.round_unseen(null, legal)
first = source[:6] if settings.data.kind == "shapes" else photographs.open_photographs(model)
second = first.roll(1, 0)
between = watermark.disguise(null, first, second)
rows = {"source": first, "transformed": between, "target": second, "noise": plots.symmetric(between - first)}
figure = plots.contact_sheet({name: shown.cpu() for name, shown in rows.items()}, columns=6)
record.figure("figure7", figure, None)

# %% [markdown]
# ## What the model makes of it
# And what another network makes of the same pictures: for it the noise is no nullspace noise. `alike before` is how often source and target had the same class to begin with. Shares with their 95 % intervals.

# %%
effect = watermark.effect_table(model, source, made, target)
record.table("effect", effect)
judges = {model.name: model} | ({"independent judge": bench.surrogate} if bench.surrogate else {})
found = []
for name, judge in judges.items():
    with torch.no_grad():
        before, after, aim = (torch.cat([judge(x) for x in p.split(32)]).argmax(1) for p in (source, made, target))
    shares = {"unchanged": before == after, "as the target": after == aim, "alike before": before == aim}
    found += [{"judge": name, "answer": told} | vars(share_estimate(hits.cpu())) for told, hits in shares.items()]
answers = pd.DataFrame(found)
record.table("judges", answers)
answers.drop(columns="seeds").round(4)

# %%
effect.drop(columns=["class_before", "class_after"]).describe().loc[["mean", "min", "max"]].round(4)

# %% [markdown]
# ## Figures 8(b) and 10: saliency
# Maps of one image, its transformed picture, and the target; red: for the class, blue: against it. Each map is scaled by its own largest value.

# %%
trio = torch.cat([first[:1], between[:1], second[:1]])
with torch.no_grad():
    classes = model(trio).argmax(1)
figure, axes = plt.subplots(3, len(saliency.METHODS), figsize=(1.1 * len(saliency.METHODS), 3.4))
for column, method in zip(axes.T, saliency.METHODS, strict=True):
    maps = saliency.saliency_map(model, trio, classes, method)
    for ax, drawn in zip(column, maps.cpu(), strict=True):
        ax.imshow(drawn, cmap="RdBu_r", vmin=-drawn.abs().max(), vmax=drawn.abs().max())
        ax.set(xticks=[], yticks=[])
    column[0].set_title(method, fontsize=6)
for ax, name in zip(axes[:, 0], ("source", "transformed", "target"), strict=True):
    ax.set_ylabel(name, fontsize=7)
record.figure("figure10", figure, None)

# %% [markdown]
# ## How alike are the maps?
# Pearson's correlation over many images. A real-valued picture has the source's tokens, up to the solver's tolerance, and maps that are functions of the tokens alone must then be equal. That is `algebra` (in the table below: of source and real-valued picture): Grad-CAM, attention rollout and the gradient pixel by pixel; summed over a patch, every method here. Maps that multiply by the pixel itself see the noise pixel by pixel. All else is measured: those, whatever 256 levels change, and the likeness to the target. Where that is high as well, as of attention rollout (.92 at `laptop`), the map hardly depends on the image, and that it stays the same says little.

# %%
count = study.saliency_images
pictured = {saliency.EXACT: legal[:count], saliency.ROUNDED: made[:count]}
table = saliency.correlation_table(model, source[:count], pictured, target[:count])
record.table("saliency", table)
wide = table.assign(shown=table.pair + ", " + table.picture).pivot(
    index=["level", "method"], columns="shown", values="value"
)
algebra = table[table.picture == saliency.EXACT].groupby(["level", "method"]).algebra.any()
wide.assign(algebra=algebra).rename_axis(columns=None).round(6)

# %% [markdown]
# ## Verdicts
# By the rules that stand in `data/reference/claims.csv`.

# %%
per_patch = saliency.estimates(table, level="patch", picture=saliency.ROUNDED)
record.judge("C17", "targeted", share_estimate(effect.match))
record.judge("C17", "saliency", per_patch)
assert effect.logits.max() < 1
assert (effect.pixels > 0.1).all()
assert min(e.value for e in per_patch) > 0.9
assert table[table.algebra].value.min() > 0.999
record.save(null_dim=null.dim, judges=answers.drop(columns="seeds").to_dict("records"))
record.summary()

# %% [markdown]
# To the model the disguised image is the source: its class, its confidence, and what it looks at. For a network with another first layer the noise is no nullspace noise; yet that need not change its mind, and the table of judges says for how many pictures it does. At `laptop` it mostly does not: the small CNN, too, gives most pictures the class of their source.
# Equal saliency says little more than equal tokens: most of the maps are functions of the tokens alone.
