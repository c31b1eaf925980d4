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
# # 12 · Every claim, wherever it has been tested
#
# **All claims.** What the other notebooks recorded about C1 to C19, side by side for every profile that has been run: verdict, number, interval, n and seeds. Nothing is computed here.
#
# *Paper: arXiv:2403.10476. The claims in our words, and the rules by which they are judged: data/reference/claims.csv.*

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name; none of them changes what is shown

# %%
import matplotlib.pyplot as plt
import pandas as pd

import nslib
from nslib import palette, plots
from nslib.report.cells import number
from nslib.report.claims import read_claims
from nslib.report.gather import VERDICTS, all_claims, gather_all

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("12_claims", settings)

# %% [markdown]
# ## The runs
# A row for each folder in `figures/`, the committed ones among them: its name and the profile that it was run with. Records of this notebook itself are not counted. A run whose records were made by several versions, or that lacks some notebooks, says so here; its page `figures/<run>/index.html` tells which. `no longer by the rule` lists verdicts that claims.csv, applied again to the recorded number, does not give: their notebooks have to run again.

# %% tags=["reads-records"]
runs = gather_all(without=record.notebook)
claims = all_claims(runs)
claims["claim part"] = claims.claim + " " + claims.part
not_run = (claims.verdict == "not run").groupby(claims.profile).sum()
overview = pd.DataFrame(
    [(r.run_name, len(r.records), not_run[r.run_name], len(r.groups), len(r.differences)) for r in runs],
    columns=["run", "records", "parts not run", "versions", "settings that differ"],
)
overview.insert(1, "profile", [", ".join(r.profiles) for r in runs])
overview["no longer by the rule"] = [", ".join(r.outdated) for r in runs]
record.table("runs", overview)
overview

# %% [markdown]
# ## Verdicts
# One line a part of a claim, one column a run. `not shown`: the rule requires an interval beyond a threshold, but it includes the threshold; `does not hold`: all of it lies on the wrong side, or a rule without interval fails. `not testable`: the rule cannot be applied at that profile; `testable at` tells where it can. The verdict is made in the `notebook`, by the cell with `record.judge` under the heading `cell`.

# %%
names = [r.run_name for r in runs] or [""]
wide = claims.pivot(index="claim part", columns="profile", values="verdict").loc[claims["claim part"].unique(), names]
about = claims.drop_duplicates("claim part").set_index("claim part")[["words", "testable at", "notebook", "cell"]]
table = about[["words"]].join(wide).join(about.drop(columns="words"))
record.table("verdicts", table.reset_index())
table

# %%
figure, ax = plt.subplots(figsize=(6.4, 1.6 + 0.22 * len(names)))
plots.verdict_grid(wide, ax)
plots.legend_above(figure, ax)
plots.caption(figure, "rules, intervals, n and seeds: see the table of numbers")
record.figure("grid", figure, None)

# %% [markdown]
# ## Numbers
# The estimate that decided, of several that have names with the one `of` which it is, its 95 % interval, the number of images or other units, the seeds, and the rule; the saved table also says which rules were changed after the first experiment, and how. `versions` tells records of one run apart that were made by different versions.

# %%
shown = ["claim", "part", "profile", "verdict", "of", "value", "low", "high", "n", "seeds", "rule", "versions"]
record.table("numbers", claims[[*shown, "words", "testable at", "changed"]])
numbers = claims.loc[claims.value.notna(), shown]
numbers.assign(**{bound: numbers[bound].map(number) for bound in ("value", "low", "high")})

# %% [markdown]
# ## Where the runs disagree
# The same claim, judged by the same rule, at two scales.

# %%
judged = claims[claims.verdict.isin(["holds", "not shown", "does not hold"])]
split = judged.groupby("claim part", sort=False).filter(lambda rows: rows.verdict.nunique() > 1)
record.table("disagreements", split[[*shown, "words"]])
split[["claim", "part", "profile", "verdict", "value", "low", "high", "n"]].round(4)

# %%
parts = read_claims()
assert set(zip(claims.claim, claims.part, strict=True)) == set(zip(parts.claim, parts.part, strict=True))
assert not claims.duplicated(["claim", "part", "profile"]).any()
assert set(claims.verdict) <= set(VERDICTS) == set(palette.VERDICTS)
assert (judged[["n", "seeds"]] > 0).all(axis=None)
spanned = judged[judged.low.notna()]  # a single seed has no interval over seeds
assert spanned.value.between(spanned.low - 1e-9, spanned.high + 1e-9).all()
untested = [part for part in wide.index if part not in set(judged["claim part"])]
record.save(runs=[r.run_name for r in runs], untested=untested)
untested

# %% [markdown]
# The last list names the parts that no run has judged yet.
# A claim that holds at one scale and not at another is reported as both.
