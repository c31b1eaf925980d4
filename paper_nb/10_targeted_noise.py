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
# # 10 · One image disguised as another
#
# **Claim.** C17, second and third part: nullspace noise that draws an image towards another keeps the prediction, and the saliency maps.
#
# *Paper: Appendix F, Eq. (12), Figures 7-10, arXiv:2403.10476.* The paper shows a few images. Here many are counted, in 256 levels, and it is said which equalities are algebra and which are measured. As an independent judge, a network with another first layer looks at the same pictures.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import pandas as pd
import torch

import nslib
from nslib import plots
from nslib.analysis import photographs, pictures, saliency, watermark
from nslib.intervals import share_estimate
from nslib.runtime import generator
from nslib.vit.staged import batched_logits

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("10_targeted_noise", settings)
settings.models, settings.watermark

# %% [markdown]
# ## Figure 7: source, target, and what is between
# Each image is drawn towards the one before it. The noise is all of the difference that the embedding does not see, as far as pixels stay in [0, 1]. Every transformed picture is saved as PNG and read again; what is measured is what was read.

# %%
bench, study = nslib.open_bench(settings), settings.watermark
model, null = bench.model, nslib.PatchNullspace(bench.model)
images, _ = bench.source.take("val", study.images)
source = pictures.eight_bit(images)
target = source.roll(1, 0)
legal = watermark.nearest_legal(null, source, target)
made = pictures.through_files(watermark.round_unseen(null, legal))
len(made), null.dim

# %%
first = source[:6] if settings.data.kind == "shapes" else photographs.open_photographs(model)
second = first.roll(1, 0)
between = watermark.disguise(null, first, second)
scale = plots.scale_of(between - first)
rows = {"source": first, "transformed": between, "target": second, "noise": plots.symmetric(between - first, scale)}
names = bench.source.names()
titles = {
    name: plots.answer_titles(batched_logits(model, rows[name]), names) for name in ("source", "transformed", "target")
}
figure = plots.contact_sheet({name: shown.cpu() for name, shown in rows.items()}, titles=titles, columns=6)
plots.caption(
    figure,
    f"over the pictures: the answer of {model.name} and its confidence; noise: grey is 0, white and black ±{scale:.2f}, its 99 % quantile",
)
record.pictures("figure7", figure)

# %% [markdown]
# What both networks answer to these pictures: to the other one, with another first layer, the noise is no nullspace noise.

# %%
judges = {model.name: model} | ({settings.surrogate: bench.surrogate} if bench.surrogate else {})
seen = {(judge, name): plots.answer_titles(batched_logits(network, rows[name]), names)
        for judge, network in judges.items() for name in ("source", "transformed", "target")}  # fmt: skip
answered = pd.DataFrame(seen).rename_axis("picture").rename_axis(columns=["network", "shown"])
record.table("answers", answered.melt(ignore_index=False, value_name="answer").reset_index())
answered

# %% [markdown]
# ## What the model makes of it
# And what another network makes of the same pictures: for it the noise is no nullspace noise. `alike before` is how often source and target had the same class to begin with; `unchanged as JPEG 95` is of the transformed pictures saved as such; `unchanged, permuted` is the control, the same noise with the pixels of every patch in another order, which is in neither's nullspace. Shares with their 95 % intervals.

# %%
effect = watermark.effect_table(model, source, made, target)
record.table("effect", effect)
jpeg = torch.stack([pictures.as_jpeg(image) for image in made]).to(made)
control = watermark.permuted_change(null, source, made, generator=generator(settings.seed))
found, answers = [], {}
for name, judge in judges.items():
    seen = (batched_logits(judge, shown).argmax(1).cpu() for shown in (source, made, target, jpeg, control))
    before, after, aim, saved, other = answers[name] = tuple(seen)
    shares = {"unchanged": before == after, "as the target": after == aim, "alike before": before == aim}
    shares |= {"unchanged as JPEG 95": before == saved, "unchanged, permuted": before == other}
    found += [{"judge": name, "answer": told} | vars(share_estimate(hits)) for told, hits in shares.items()]
told = pd.DataFrame(found)
record.table("judges", told)
told.drop(columns="seeds").round(4)

# %% [markdown]
# Pictures on which the other network changes its answer and the model does not, six of them at most; and how often it changes it, under the noise and under the noise permuted.

# %%
last = answers[list(judges)[-1]]  # of the other network, if there is one
changed = ((last[0] != last[1]) & torch.tensor(effect.match)).nonzero().flatten()[:6]
if len(changed) and settings.data.kind == "shapes":
    rows = {"source": source[changed], "transformed": made[changed]}
    titles = {name: [names[c] for c in seen[changed]] for name, seen in zip(rows, last[:2], strict=True)}
    figure = plots.contact_sheet({name: shown.cpu() for name, shown in rows.items()}, titles=titles, columns=6)
    plots.caption(figure, f"over the pictures: the answer of {settings.surrogate}; that of {model.name} stays")
    record.pictures("changed", figure)
moved, control_moved = ((last[0] != answer).float().mean().item() for answer in (last[1], last[4]))
print(f"{len(changed)} shown; {list(judges)[-1]} changes {moved:.1%} of its answers, {control_moved:.1%} if permuted")

# %% [markdown]
# How far the pictures went: confidence in the answer before, the largest change of a logit and of a pixel, and PSNR in dB to the target, of the source (`psnr_before`) and of the transformed picture (`psnr`), and of that to its own source. The paper says that its transformed pictures look like the target rather than the source; how many of these do is counted.

# %%
print(f"{(effect.psnr > effect.psnr_source).sum()} of {len(effect)} nearer to the target than to their source")
effect.drop(columns=["class_before", "class_after"]).describe().loc[["mean", "min", "max"]].round(4)

# %% [markdown]
# ## Figures 8(b) and 10: saliency
# Maps of one image, its transformed picture, and the target; red: for the class, blue: against it. Figure 8(b) is the column CP-LRP, a later layer-wise relevance propagation for transformers, where the paper used that of Chefer et al. (2021); Figure 10 all of them. Each map is scaled by its own 99 % quantile. Grad-CAM cuts what speaks against the class, and attention rollout knows no class: neither is ever negative.

# %%
trio = torch.cat([first[:1], between[:1], second[:1]])
classes = batched_logits(model, trio).argmax(1)
maps = {method: saliency.saliency_map(model, trio, classes, method).cpu() for method in saliency.METHODS}
figure = plots.saliency_sheet(dict(zip(("source", "transformed", "target"), trio.cpu(), strict=True)), maps)
plots.caption(
    figure,
    f"{model.name}, for the class it answers; each map from − to + its own 99 % quantile, blue to red; Grad-CAM and attention rollout are never negative",
)
record.pictures("figure10", figure)

# %% [markdown]
# ## How alike are the maps?
# Pearson's correlation over many images. A real-valued picture has the source's tokens, up to the solver's tolerance, and maps that are functions of the tokens alone must then be equal. That is `algebra` (in the table below: of source and real-valued picture): Grad-CAM, attention rollout and the gradient pixel by pixel; summed over a patch, every method here. Maps that multiply by the pixel itself see the noise pixel by pixel. All else is measured: those, whatever 256 levels change, and the likeness to the target. Where likeness to the target is also high, as for attention rollout (.92 at `laptop`), the map hardly depends on the image, so its staying the same says little. `n` counts the images whose maps are not flat: where nothing speaks for the class Grad-CAM is zero everywhere and has no correlation (at `laptop` 2 of the 64 sources, and 2 more of the targets).

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
# By the rules that stand in `data/reference/claims.csv`. Saliency is judged patch by patch, where equal tokens make equal maps; pixel by pixel it is less alike, as printed first.

# %%
per_patch, per_pixel = (saliency.estimates(table, level=v, picture=saliency.ROUNDED) for v in ("patch", "pixel"))
method, least = min(per_pixel.items(), key=lambda named: named[1].low)
spelled = f"{least.value:.3f} [{least.low:.3f}, {least.high:.3f}], by {method}"
print(f"least alike of the maps of 8-bit pictures, pixel by pixel: {spelled}")
record.judge("C17", "targeted", share_estimate(effect.match))
record.judge("C17", "saliency", per_patch)
assert (effect.pixels > 0.1).all()
assert table[table.algebra].value.min() > 0.999
record.save(null_dim=null.dim, least_per_pixel=vars(least), judges=told.drop(columns="seeds").to_dict("records"))
record.summary()

# %% [markdown]
# To the model the disguised image is the source: its class, its confidence, and what it looks at. To us as well: it moves towards the target, but all 200 at `laptop` and `full` stay nearer to their source, as the nullspace holds little of a smooth difference. For a network with another first layer the noise is no nullspace noise; yet it mostly keeps its answer, as the table of judges says. The small CNN at `laptop` and DeiT at `imagenet-mini` each give another answer to 12.0 % of the disguised pictures, and as often, to 12.0 % and 12.5 %, where the noise is permuted, so that its direction has no part in it; the CNN at `gpu` does to 21 %, to 8 % of the permuted ones. The model itself, at `laptop` and `imagenet-mini`, answers differently to none, and to 6.5 % and 22.5 % under the permuted noise.
# Equal saliency says little more than equal tokens: summed over patches every map here is a function of the tokens alone, pixel by pixel three of six are.
