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
# # Explore · Move a noise over an image
#
# Pick a model, an image, a kind of noise and its scale, and see the image, the prediction and the gap change at once.
#
# *Paper: Sections 3.1-3.3, Appendices D and F, arXiv:2403.10476.* This notebook judges no claim; it is for looking. Where nobody can move a widget, as under papermill and nbval, it shows still pictures. Saved with the widgets it loses them: `git checkout paper_nb/explore.*` brings them back.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import time

import pandas as pd

import nslib
from nslib import plots
from nslib.explore import drawing, panel, view
from nslib.explore.subject import EPS

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
explorer = view.open_explorer(settings)
name = explorer.models[0]
settings.models

# %%
subject = explorer.subject(name)
learned = subject.learned
where = "inside" if learned.converged else "not inside"
f"{name}: {len(subject.images)} images; noise with a held-out gap of {learned.gap_heldout:.3f}, {where} ε = {EPS:g}"

# %% [markdown]
# ## The noises
# - `patch`: from the exact nullspace of the patch embedding, in pixels. No token moves, whatever the scale.
# - `targeted`: exact as well: all of the difference to an image of another class that the embedding does not see, Eq. (12).
# - `learned`: on the tokens, from a search that stops inside the ε-approximate nullspace for ε = .03, at scale 1 and in the mean over held-out images; whether it got there is printed above. It has no picture; shown is its norm on each patch.
# - `permuted`, `random`: the controls of the same norm. Look at scale −1 too: on shapes a learned noise cannot be negated in the mean over images (notebook 04); a single image may hardly notice.
#
# Grey bars are the probabilities without the noise, coloured ones those with it; an orange title says that the prediction has changed.

# %%
choices = [view.Choice(name, image=3, kind=kind) for kind in subject.kinds]
choices += [view.Choice(name, image=3, kind="learned", scale=-1.0)]
panel.present(explorer, choices)

# %% [markdown]
# ## The same in numbers
# The gap is the squared l2 distance between softmax vectors. `norm` is that of the noise, in pixels or in token units; `shift` is how far it moves the tokens.

# %%
views = [explorer.show(view.Choice(name, 3, kind, scale)) for kind in subject.kinds for scale in (-1.0, 1.0, 2.0)]
pd.DataFrame([shown.row() for shown in views]).round(4)

# %% [markdown]
# ## How fast a move is
# Seconds from a choice to its picture, forward pass and drawing together.

# %%
seconds = {kind: [] for kind in subject.kinds}
for kind, times in seconds.items():
    for step in range(5):
        started = time.perf_counter()
        drawing.png([explorer.show(view.Choice(name, step, kind, step / 2 - 1))])
        times.append(time.perf_counter() - started)
pd.DataFrame(seconds).agg(["median", "max"]).T.round(3)

# %% [markdown]
# ## Your own model and images
# Any plain ViT of timm, on an ImageNet-style folder `root/{train,val}/<wnid>/*.JPEG`. Several models come into the same panel; each is opened when it is first picked, and its noise is learned then and kept.
#
# ```python
# settings = nslib.resolve("imagenet_small", overrides={
#     "data.root": "path/to/imagenet",
#     "weights": "path/to/weights",  # a folder of <timm tag>.safetensors, or "pretrained" for timm's hub
#     "models": ["vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch32_224.augreg_in21k_ft_in1k"],
# })
# panel.panel(view.open_explorer(settings))
# ```
#
# A model that is already in memory, such as a finetuned one, is shown by `view.Explorer({"mine": lambda: prepare(...)})` with `nslib.explore.subject.prepare`.
