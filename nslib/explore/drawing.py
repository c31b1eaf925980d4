"""A view as a picture: the image, the image with its noise or where the noise lies, and the likeliest classes."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from nslib import palette, plots
from nslib.explore.subject import EPS
from nslib.explore.view import View

_SIZE = (7.0, 2.2)  # of a view, inches
_DPI = 130
_PLACES = (  # left, bottom, width, height of the image, what is done to it, the scale beside that, and the classes
    (0.01, 0.15, 0.24, 0.72),
    (0.27, 0.15, 0.24, 0.72),
    (0.52, 0.2, 0.012, 0.62),
    (0.73, 0.24, 0.25, 0.62),
)
_CLASSES = 5
_ROUNDING = 1e-9  # smaller gaps are told as such
_LETTERS = 20  # of a class name


def draw(view: View, figure: Figure | SubFigure) -> None:
    """Fill a figure with a view. Everything has a fixed place, so that nothing jumps when the view moves."""
    choice, subject = view.choice, view.subject
    image, seen, scale, bars = (figure.add_axes(place) for place in _PLACES)
    plots.picture(view.image, image, f"image {choice.image}: {_short(subject.names[subject.labels[choice.image]])}")
    noise = f"{choice.kind} noise × {choice.scale:g}"
    if view.changed is not None:
        plots.picture(view.changed, seen, f"+ {noise}" if view.target is None else f"+ {noise}, image {view.target}")
        scale.set_axis_off()
        size = f"{view.norm:.3g} in pixels (cut to [0, 1] where shown)"
    else:
        shown = seen.imshow(view.norms.numpy(), cmap="viridis", vmin=0, vmax=subject.largest)
        seen.set_axis_off()
        seen.set_title(noise)
        figure.colorbar(shown, cax=scale).set_label("norm on a patch, token units", fontsize=6)
        size = f"{view.norm:.3g} in token units"
    _draw_classes(view, bars)
    told = f"{choice.model}: noise of norm {size} moves tokens of norm {view.tokens:.3g} by {view.shift:.3g}"
    if choice.kind == "learned" and not subject.learned.converged:
        told += f"; its search ended outside ε = {EPS:g}"
    figure.text(0.01, 0.04, told, fontsize=6, color="0.35")


def _draw_classes(view: View, ax: Axes) -> None:
    """The likeliest classes, without the noise in grey and with it in its colour; orange title: another prediction."""
    names = view.subject.names
    chosen = view.before.maximum(view.after).argsort(descending=True)[:_CLASSES].tolist()
    place = np.arange(len(chosen))
    ax.barh(place - 0.2, view.before[chosen].numpy(), 0.36, color=palette.COLOURS["base"], label="without")
    ax.barh(place + 0.2, view.after[chosen].numpy(), 0.36, color=palette.COLOURS[view.choice.kind], label="with noise")
    ax.legend(loc="lower right")
    ax.set(xlim=(0, 1), ylim=(_CLASSES - 0.5, -0.5), xlabel="probability")
    ax.set_yticks(place, [_short(names[c]) for c in chosen])
    ax.grid(axis="y", visible=False)
    before, after = (_short(names[c]) for c in view.predictions)
    gap = f"gap {view.gap:.2g}" if view.gap >= _ROUNDING else f"gap < {_ROUNDING:.0e}"
    told, colour = (f"still {before}", "black") if view.match else (f"{before} → {after}", palette.COLOURS["permuted"])
    ax.set_title(f"{told}, {gap}", loc="right", color=colour)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def panels(views: Sequence[View]) -> Figure:
    """Views under each other, in a figure that pyplot does not know: thousands of moves leave nothing open."""
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * len(views)), layout="none")
    for view, part in zip(views, figure.subfigures(len(views), 1, squeeze=False)[:, 0], strict=True):
        draw(view, part)
    return figure


def png(views: Sequence[View]) -> bytes:
    """The panels of views as the bytes of a PNG."""
    with _garbage_kept_young():
        file = io.BytesIO()
        panels(views).savefig(file, format="png", dpi=_DPI)
        return file.getvalue()


@contextmanager
def _garbage_kept_young() -> Iterator[None]:
    """Collect a figure's thousands of cyclic objects at once and alone.

    Left to itself Python lets them grow old, and then goes through all objects that torch and timm have made, about
    every fifteenth figure: half a second in which nothing moves.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(1)
        if enabled:
            gc.enable()
