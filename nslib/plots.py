"""Figures: functions that take a table or images and an axis and give the axis back. One colour a method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from torch import Tensor

from nslib.evaluate.columns import COSTLY
from nslib.intervals import span
from nslib.palette import COLOURS, DASHES, MARKERS, VERDICTS


def use_style() -> None:
    """Make matplotlib draw like every figure of this package, on figures made from now on."""
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))


def curves(table: pd.DataFrame, ax: Axes, *, x: str, y: str = "value", by: str = "noise") -> Axes:
    """One line for each value of column `by`, with a band from columns `low` to `high` where the table has them."""
    for name, rows in table.groupby(by, sort=False):
        rows = rows.sort_values(x)
        colour = COLOURS.get(name)
        (line,) = ax.plot(
            rows[x], rows[y], DASHES.get(name, "-"), marker=MARKERS.get(name, "o"), color=colour, label=name
        )
        if {"low", "high"} <= set(rows):
            ax.fill_between(rows[x], rows["low"], rows["high"], color=line.get_color(), alpha=0.15, linewidth=0)
    return ax


def span_at_least(ax: Axes, span: float) -> None:
    """Widen the vertical axis about its middle to this span, lest a single image look like a trend."""
    low, high = ax.get_ylim()
    wider = max(0.0, span - (high - low)) / 2
    ax.set_ylim(low - wider, high + wider)


def panels(table: pd.DataFrame, **figure) -> tuple[plt.Figure, list[tuple[Axes, pd.DataFrame]]]:
    """An axis for the columns of many images, and one beside it for those of costly attacks, if there are any."""
    parts = [rows for _, rows in table.groupby(table.column.isin(COSTLY).to_numpy())]
    widths = [rows.column.nunique() for rows in parts]
    figure, axes = plt.subplots(1, len(parts), width_ratios=widths, squeeze=False, **figure)
    return figure, list(zip(axes[0], parts, strict=True))


def bars(table: pd.DataFrame, ax: Axes, *, x: str, by: str = "noise") -> Axes:
    """Bars of values with their intervals (columns `low`, `high`) where these have a width, a group for each x."""
    groups, methods = list(dict.fromkeys(table[x])), list(dict.fromkeys(table[by]))
    width = 0.8 / len(methods)
    for i, name in enumerate(methods):
        rows = table[table[by] == name].set_index(x).reindex(groups)
        place = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        ax.bar(place, rows.value, width * 0.9, color=COLOURS.get(name), label=name)
        if {"low", "high"} <= set(rows) and (rows["high"] > rows["low"]).any():
            ax.errorbar(place, rows.value, _reach(rows), fmt="none", ecolor="0.2", elinewidth=0.8, capsize=1.5)
    ax.set_xticks(range(len(groups)), [f"{g:g}" if isinstance(g, float) else str(g) for g in groups])
    ax.grid(axis="x", visible=False)
    return ax


def _reach(rows: pd.DataFrame) -> list[pd.Series]:
    """How far the whiskers of a value go down and up."""
    return [(rows.value - rows["low"]).clip(lower=0), (rows["high"] - rows.value).clip(lower=0)]


def picture(image: Tensor | np.ndarray, ax: Axes, title: str = "") -> Axes:
    """Show one image, (3, H, W) in [0, 1]; values outside are clipped."""
    ax.imshow(np.clip(np.asarray(image), 0, 1).transpose(1, 2, 0))
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def contact_sheet(
    rows: Mapping[str, Tensor], *, titles: Mapping[str, Sequence[str]] | None = None, columns: int = 10
) -> plt.Figure:
    """A row of images, (B, 3, H, W) in [0, 1], for each name; `titles` of some rows stand over their images.

    An image takes as much room as its pixels need, at least .7 inches.
    """
    titles = titles or {}
    width = max(images.shape[-1] for images in rows.values())
    cell = max(0.7, width / plt.rcParams["savefig.dpi"])
    height = cell * len(rows) + 0.16 * len(titles)
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * cell + 0.6, height + 0.2), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.01, wspace=0, hspace=0)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image, title in zip_longest(line, images[:columns], titles.get(name, ())[:columns], fillvalue=""):
            ax.set_axis_off()
            if len(image):
                picture(image, ax, title)
                ax.title.set(fontsize=5.5)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    return figure


def answer_titles(logits: Tensor, names: Sequence[str]) -> list[str]:
    """A title for each picture: the class that a model gives it, and how sure it is, from logits (B, classes)."""
    return [f"{names[c]}, {p:.0%}" for p, c in zip(*logits.softmax(1).max(1), strict=True)]


def symmetric(noise: Tensor, peak: float | None = None) -> Tensor:
    """Noise as an image: zero is grey, +-peak (default: its largest pixel) is white and black."""
    return noise / (2 * (peak or noise.abs().max() or 1)) + 0.5


def scale_of(noise: Tensor) -> float:
    """The 99 % quantile of its absolute values: divided by it, noise is seen although a few pixels are far larger."""
    return noise.abs().flatten().quantile(0.99).item()


def saliency_sheet(images: Mapping[str, Tensor], maps: Mapping[str, Tensor]) -> plt.Figure:
    """A line for each image, (3, H, W), with its maps, (B, H, W) by each method, all scaled by their own `scale_of`."""
    size = (1.1 * (1 + len(maps)) + 0.5, 1.2 * len(images))
    figure, axes = plt.subplots(len(images), 1 + len(maps), figsize=size, squeeze=False)
    for ax, (name, image) in zip(axes[:, 0], images.items(), strict=True):
        picture(image, ax, name)
    for column, (method, drawn) in zip(axes.T[1:], maps.items(), strict=True):
        for ax, one in zip(column, drawn, strict=True):
            shades = ax.imshow((one / (scale_of(one) or 1)).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.set_axis_off()
        column[0].set_title(method)
    for ax in axes.flat:
        ax.title.set(fontsize=6)
    bar = figure.colorbar(shades, ax=axes, aspect=40, pad=0.01)
    bar.set_ticks([-1, 0, 1], labels=["−1", "0", "+1"])
    bar.set_label("relative to the map's 99 % quantile")
    return figure


def caption(figure: plt.Figure, text: str) -> None:
    """What stands under the figure: n, seeds, and what the bands mean; in as many lines as its width asks for."""
    letters = int(20 * figure.get_size_inches()[0])  # of 6 points
    together = text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    figure.supxlabel(textwrap.fill(together, letters), fontsize=6, color="0.35")


def counts(of: Sequence[int]) -> str:
    """Of how many images each of several figures is, for a caption: `n = 200 to 4000`, or `n = 4000`."""
    return f"n = {span(of)}"


def mean_of(starts: int) -> str:
    """What a bar is, for a caption: the mean of several starts, with whiskers, or one start without."""
    return f"mean of {starts} starts; whiskers: their range" if starts > 1 else "one start"


def legend_above(figure: plt.Figure, ax: Axes, *, columns: int | None = None) -> None:
    """One legend for all panels, over them, in one row or in so many columns."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns or len(labels))


def grouped(table: pd.DataFrame, ax: Axes) -> Axes:
    """One bar for each column of a table, a group for each row."""
    table.plot.bar(
        ax=ax, legend=False, rot=0, width=0.8, color=[COLOURS[c] for c in ("paper", "nullspace", "complement")]
    )
    ax.grid(axis="x", visible=False)
    return ax


def shadow(ax: Axes) -> Axes:
    """A projection onto the horizontal axis: all points of a vertical line fall on one shadow."""
    for x, heights in ((0.25, (0.3, 0.6, 0.9)), (0.7, (0.45, 0.8))):
        ax.plot([x] * 2, [0, 1], ":", color=COLOURS["nullspace"])
        ax.plot([x] * len(heights), heights, "o", color=COLOURS["learned"])
        ax.plot(x, 0, "s", color="0.2", clip_on=False)
    ax.annotate("nullspace", (0.25, 0.95), xytext=(0.32, 0.97), color=COLOURS["nullspace"], va="center")
    ax.set(xlim=(0, 1), ylim=(0, 1.05), xticks=[], yticks=[], xlabel="shadows")
    return ax


def rows_of_table2(ours: pd.DataFrame, printed: pd.DataFrame, ax: Axes) -> Axes:
    """Our columns with their intervals, and beside each the paper's base and NS figures of its two models."""
    names = [c for c in ours.column if c in printed.columns]
    rows = ours.set_index("column").loc[names]
    place = np.arange(len(names))
    ours_at = {"fmt": "o", "color": COLOURS["learned"], "capsize": 2, "label": "ours, base"}
    ax.errorbar(place - 0.3, rows.value, _reach(rows), **ours_at)
    for i, (model, marker) in enumerate((("ViT-S", "x"), ("ViT-S + NS", "+"), ("ViT-B", "^"), ("ViT-B + NS", "v"))):
        values = printed.set_index("model").loc[model, names].astype(float)
        ax.plot(place - 0.1 + 0.15 * i, values, marker, color=COLOURS["paper"], label=f"paper, {model}")
    ax.set_xticks(place, [f"{n} (error)" if n == "c" else n for n in names], rotation=30, ha="right")
    ax.grid(axis="x", visible=False)
    return ax


def heat(table: pd.DataFrame, ax: Axes, *, label: str, high: float = 100, digits: int = 0) -> Axes:
    """A table, such as of percentages, as a heat map with its numbers; colours go from 0 to `high`."""
    seaborn.heatmap(table, ax=ax, vmin=0, vmax=high, cmap="viridis", annot=True, fmt=f".{digits}f",
                    annot_kws={"size": 6}, cbar_kws={"label": label})  # fmt: skip
    ax.tick_params(axis="y", labelrotation=0)
    return ax


def answers(examples: Mapping[str, Any], class_names: Sequence[str]) -> plt.Figure:
    """The first image of each column that the model sees, with its class and, where it differs, the answer."""
    columns = 7
    lines = -(-len(examples) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(columns * 0.95, lines * 1.25), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, (images, labels, predictions)) in zip(axes.flat, examples.items(), strict=False):
        truth, answer = (class_names[int(t[0])] for t in (labels, predictions))
        picture(images[0], ax, f"{name}\n{truth}" if truth == answer else f"{name}\n{truth} → {answer}")
        ax.title.set(fontsize=6, color="black" if truth == answer else COLOURS["permuted"])
    return figure


def points(table: pd.DataFrame, ax: Axes, *, x: str, by: str = "noise", told: str = "") -> Axes:
    """Values and intervals (columns `value`, `low`, `high`), for each x a mark for every method, side by side.

    Args:
        told: format of the values that are written over the marks, such as .2g; empty: none.
    """
    groups, methods = list(dict.fromkeys(table[x])), list(dict.fromkeys(table[by]))
    for i, name in enumerate(methods):
        rows = table[table[by] == name].set_index(x).reindex(groups)
        place = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * 0.6 / len(methods)
        mark = MARKERS.get(name, "o")
        ax.errorbar(place, rows.value, _reach(rows), fmt=mark, color=COLOURS.get(name), capsize=1.5, label=name)
        for at, value, high in zip(place, rows.value, rows["high"], strict=True) if told else ():
            ax.annotate(f"{value:{told}}", (at, high), (0, 3), textcoords="offset points", ha="center", fontsize=5.5)
    ax.margins(y=0.12 if told else None)
    ax.set_xticks(range(len(groups)), groups)
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.grid(axis="x", visible=False)
    return ax


def differences(table: pd.DataFrame, ax: Axes, *, x: str = "column") -> Axes:
    """Differences in percentage points with their intervals, as `points` around a line at zero."""
    bounds = {"difference": "value", "difference_low": "low", "difference_high": "high"}
    points(table.rename(columns=bounds), ax, x=x, by="model")
    ax.axhline(0, color="0.3", linewidth=0.8)
    if x == "column":
        ax.tick_params(axis="x", labelrotation=30)
        plt.setp(ax.get_xticklabels(), ha="right")
    return ax


def verdict_grid(table: pd.DataFrame, ax: Axes) -> Axes:
    """A mark for each verdict: claims (the index) from left to right, runs (the columns) from top to bottom."""
    for verdict, (marker, colour) in VERDICTS.items():
        claim, run = np.nonzero((table == verdict).to_numpy())
        ax.scatter(claim, run, s=26, marker=marker, color=colour, label=verdict)
    ax.set_xticks(range(len(table)), table.index, rotation=90, fontsize=6)
    ax.set_yticks(range(table.shape[1]), table.columns)
    ax.set(xlim=(-0.6, len(table) - 0.4), ylim=(table.shape[1] - 0.4, -0.6))
    return ax
