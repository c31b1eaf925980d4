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
# # 07 · Against adversarial finetuning
#
# **Claim.** C12: nullspace finetuning (NS) beats Madry and TRADES on clean and shifted images, and loses to them under FGSM and DamageNet.
#
# *Paper: Section 5.3, Table 3, arXiv:2403.10476.* Madry and TRADES train on PGD images (10 steps, 8/255). The paper's rows were trained with another batch size and other augmentation than its NS row; here all share one recipe. `madry` has no clean term; the authors' variant, which adds one, is the row `madry_authors` of profiles `full` and `gpu`. C12 is judged only with the paper's rounds, updates and noise (K = 20, S = 40, A = 3, T = 3,000): after fewer updates much of the gap is that training on attacks has only begun.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"finetune.attack_eps": 0.016}

# %%
import matplotlib.pyplot as plt
import pandas as pd

import nslib
from nslib import plots
from nslib.evaluate.comparison import mean_difference
from nslib.finetune.objectives import ADVERSARIAL
from nslib.report.reference import printed
from nslib.study import beside, jobs, tables, testable, trials

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("07_adversarial_finetuning", settings)
settings.models, settings.finetune.attack_eps, settings.finetune.attack_steps

# %% [markdown]
# ## Table 3
# Ours above, the paper's below. c is an error; the mean takes 100 − c. `c / base`: that error relative to the base model's, empty where this profile shows one of the two no corruptions. `missed_eps`: rounds whose noise never got inside ε. In the paper's rows TRADES is ahead of NS on sketch (26.4 against 25.7): C12 is judged by means.

# %%
bench = nslib.open_bench(settings)
found = trials.rows(bench, settings, ("plain", "nullspace", *ADVERSARIAL))
table3 = tables.rows_table(found)
shown = tables.with_absent(table3, settings.profile, ADVERSARIAL)
record.table("table3", shown)
record.table("estimates", tables.rows_estimates(found))
shown.round(2)

# %% tags=["nbval-check-output"]
printed("table3")

# %% [markdown]
# ## The others minus NS
# Below zero nullspace finetuning is better, on the same images: where the profile asks for it, on more than Table 3 has (`finetuning.wide_images`), with the first seed of NS. No figure where the profile trains on no attack.

# %%
rivals = [name for name in ADVERSARIAL if name in found]
wide = trials.wide_rows(bench, settings, ("nullspace", *rivals))
compared = found | wide if {*rivals} <= {*wide} else found
nullspace, others = compared["nullspace"], {name: compared[name] for name in rivals}
against = tables.differences_to({"nullspace": nullspace, **others}, "nullspace")
if others:
    figure, ax = plt.subplots(figsize=(5.6, 2.4))
    plots.differences(against, ax).set(ylabel="the other minus NS, points")
    plots.legend_above(figure, ax)
    plots.caption(
        figure,
        f"{bench.model.name}, {plots.counts(against.n)} images a column, seeds of each: {against.seeds.max()}; whiskers: 95 % of the paired difference",
    )
    record.figure("against_adversarial", figure, against)

# %% [markdown]
# ## NS minus the other
# Clean and shifted images (natural), and FGSM with DamageNet (adversarial), as the claim has it: other attacks are in neither mean. `seeds`: how many of NS were compared, no more than the other has.

# %%
columns = tables.shown(found, settings.finetuning.columns)
sides = testable.sides(columns)
gains = tables.side_gains({"nullspace": nullspace, **others}, "nullspace", sides)
record.table("sides", gains)
gains.round(2)

# %% [markdown]
# ## Stronger attacks
# FGSM of Table 2 is of 1/255, and the rivals are trained at 8/255: top-1 under PGD against its budget. At `full` `base`, `plain` and `nullspace` nearly coincide.

# %%
curves = pd.concat([beside.strength(bench, settings, name) for name in found], ignore_index=True)
strength, ax = plt.subplots(figsize=(4.8, 2.6))
plots.curves(curves, ax, x="eps", by="model").set(xlabel="attack budget, /255", ylabel="top-1, %")
plots.legend_above(strength, ax, columns=3)
plots.caption(
    strength,
    f"{bench.model.name}, n = {settings.robustness.images}, the first seed of each; PGD of {settings.suite.pgd_steps} steps; bands: 95 % intervals",
)
record.figure("strength", strength, curves)
curves.pivot(index="model", columns="eps", values="value").loc[list(found)].round(1)

# %% [markdown]
# ## Verdicts
# By the rules that stand in `data/reference/claims.csv`.

# %%
judging = others if testable.rivalled(settings) else {}
judged = {side: judging if testable.whole_side(columns) else {} for side, columns in sides.items()}
ahead = {s: {name: mean_difference(nullspace, r, sides[s]) for name, r in of.items()} for s, of in judged.items()}
record.judge("C12", "natural", ahead["natural"])
record.judge("C12", "adversarial", ahead["adversarial"])
assert table3["mean"].between(0, 100).all()
record.save(**sides, missed_eps=tables.missed_eps(found), jobs=jobs.provenance(settings))
record.summary()

# %% [markdown]
# Training on attacks buys robustness to attacks of that kind, at the price of clean accuracy where the budget is large.
# At `full`, over images under one seed, NS is 10.8 points [10.6, 11.1] ahead of the best of the three on clean and shifted images (n = 12,000). In the mean of FGSM and DamageNet it is 1.1 points behind `trades` and 1.1 behind `madry_authors`, which has a clean term (both shown under DamageNet alone), but 3.8 ahead of `madry`, the loss as the paper's text describes it, so the claim fails. Under PGD at 8/255, the budget these three train at, its accuracy is 3.4 % and theirs 29.1, 30.8 and 37.6 (n = 1,000), so under this stronger attack it is behind all three (one seed). The noise has no part in either: finetuning without it is 11.0 points ahead of the best of the three on clean and shifted images, .8 behind it in the mean of FGSM and DamageNet, and keeps 3.5 % under PGD at 8/255; the model before finetuning keeps 3.1 %. All of it: [figures/full](../figures/full/index.html).
