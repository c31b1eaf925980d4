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
# # 00 · What a nullspace is
#
# **Claim made visible:** a linear map from more numbers to fewer must be blind to some directions. The first layer of a vision transformer (ViT) is such a map, so there is noise that it cannot see, however strong.
#
# *Paper: Figure 1 and Section 3, arXiv:2403.10476.* This notebook also introduces the data and the model that the others use.

# %% tags=["parameters"]
profile = "smoke"  # smoke, laptop, full, gpu, imagenet or imagenet_small
run_name = ""  # folder under figures/; default: the profile
overrides = {}  # settings by dotted name, such as {"images": 500}

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import nslib
from nslib import plots
from nslib.data.shapes import CLASSES, SPLITS
from nslib.study.experiment import open_experiment

plots.use_style()
settings = nslib.resolve(profile, run_name, overrides)
record = nslib.Record("00_overview", settings)
settings.profile, settings.models, settings.data.kind, settings.images

# %% [markdown]
# ## A projection, and any linear map
# A projection onto the ground gives all points of a vertical line the same shadow: vertical moves are its nullspace. A random map from 8 numbers to 5 has a nullspace of 3 dimensions, which the singular value decomposition (SVD) finds. Moves along it leave the output alone; moves of the same length elsewhere do not.

# %%
generator = torch.Generator().manual_seed(settings.seed)
W = torch.randn(5, 8, generator=generator, dtype=torch.float64)
null = torch.linalg.svd(W, full_matrices=True).Vh[5:].T  # (8, 3), orthonormal
x, a = (
    torch.randn(8, generator=generator, dtype=torch.float64),
    torch.randn(3, generator=generator, dtype=torch.float64),
)
v = null @ a
other = torch.randn(8, generator=generator, dtype=torch.float64)
other -= null @ (null.T @ other)  # the part that W does see
other *= v.norm() / other.norm()
linear = pd.DataFrame({"W x": W @ x, "W (x + null)": W @ (x + v), "W (x + other)": W @ (x + other)})
linear.round(3)

# %% [markdown]
# ## A vision transformer
# The same, with a trained ViT in the place of the matrix. `PatchNullspace` reads the weights of its patch embedding. Noise from there and noise of the same norm from the orthogonal complement are equally strong; only the second moves the model. At this strength most answers stay all the same; at `full` 94 % do, at twice it 61 %, at twenty times 17 % (n = 64), as the table `amplitude` of notebook 01 says. Pictures are shown clipped to [0, 1]; the model is given them as they are.

# %%
lab = open_experiment(settings)
patch_null = nslib.PatchNullspace(lab.model)
image, label = (t[:1] for t in lab.source.take("val", 1))
noise = patch_null.sample(1, peak=0.5, generator=generator)
_, seen = patch_null.project(torch.randn(image.shape, generator=generator))
seen *= noise.norm() / seen.norm()
views = {"clean": image, "+ nullspace": image + noise.to(image), "+ complement": image + seen.to(image)}
with torch.inference_mode():
    probabilities = {name: lab.model(view).softmax(1)[0].cpu() for name, view in views.items()}
f"{lab.model.name}: {patch_null.matrix.shape[1]} pixels a patch -> width {patch_null.rank}, null dimension {patch_null.dim}"

# %%
figure, (a0, a1, a2) = plt.subplots(1, 3, figsize=(7.0, 2.3))
plots.shadow(a0).set_title("projection: one shadow")
plots.grouped(linear, a1).set(title="linear map: W x", xlabel="output", ylabel="value")
classes = pd.DataFrame(probabilities).sort_values("clean", ascending=False).head(4)
classes.index = [CLASSES[i] if settings.data.kind == "shapes" else str(i) for i in classes.index]
plots.grouped(classes, a2).set(title="ViT: four likeliest classes", ylabel="probability")
a1.legend(["x", "x + nullspace", "x + complement"], loc="best")
record.figure("figure1", figure, classes.reset_index(names="class"))

# %%
figure, axes = plt.subplots(1, 5, figsize=(7.0, 1.7))
pictures = {"clean": image, "nullspace noise": plots.symmetric(noise), "clean + nullspace": views["+ nullspace"]}
pictures |= {"complement noise": plots.symmetric(seen), "clean + complement": views["+ complement"]}
for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
    plots.picture(picture[0].cpu(), ax, name)
if settings.data.kind == "shapes":
    record.pictures("vit_views", figure)

# %% [markdown]
# ## The embedded data set
# Ten shapes, drawn by signed-distance functions from a seed, with a foreground texture that matches the class in half of the images and is arbitrary in the others, so that a texture bias can be learned. Each further split is a shift of distribution that stands for a column of the paper's Table 2:
#
# - `v2`, for ImageNet-V2: the same classes drawn again by a slightly shifted generator;
# - `a`, for ImageNet-A: small, off-centre and cluttered;
# - `r`, for ImageNet-R: other renditions in low contrast, flat, posterised or pixel art;
# - `sketch`, for ImageNet-Sketch: outlines on white, smaller and less centred;
# - `stylized`, for Stylized-ImageNet: the texture always belongs to another class, and stands out more than the shape.
#
# The column c is `val` under the fifteen corruptions of ImageNet-C at five severities, damagenet is `val` attacked on another network.

# %%
sheet = {split: nslib.render(split, range(10), seed=settings.data.seed).images for split in SPLITS}
record.pictures("shapes", plots.contact_sheet(sheet))

# %% [markdown]
# ## The model
# A ViT with 1.2 million parameters, trained on `train` from scratch (`nslib pretrain --profile laptop`). Its accuracy is measured on this run's images; `record` is the accuracy saved at training.

# %%
from nslib.models import load_model, weights_record
from nslib.pretrain import accuracy

shapes_vit, noted = load_model(), weights_record()["top1"]
top1 = {split: accuracy(shapes_vit, *nslib.render(split, range(settings.images))) for split in noted}
table = pd.DataFrame(
    {"top-1 %": {s: 100 * v for s, v in top1.items()}, "record %": {s: 100 * v for s, v in noted.items()}}
)
record.table("model", table.reset_index(names="split"))
table.round(1)

# %%
assert torch.allclose(W @ v, torch.zeros(5, dtype=torch.float64), atol=1e-12)
assert (probabilities["clean"] - probabilities["+ nullspace"]).abs().max() < 1e-4
assert top1["val"] > 0.8
record.save(null_dim=patch_null.dim, top1=top1)
record.summary()

# %% [markdown]
# Noise from the nullspace is as large as noise from the complement, and the model does not notice it. Notebook 01 measures this; notebook 02 asks whether the rest of the network is blind to something too.
