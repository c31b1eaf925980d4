"""The widgets that move a view, and the still pictures where nobody can move them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from IPython import get_ipython
from IPython.display import Image

from nslib.explore.drawing import png
from nslib.explore.subject import KINDS, SCALES
from nslib.explore.view import Choice, Explorer
from nslib.runtime import optional


def has_front_end() -> bool:
    """Whether a person can move a widget: the client that sent this cell would also let the kernel ask for input.

    Front ends for people, JupyterLab and Notebook among them, say so in every request (`allow_stdin` of the messaging
    protocol); nbval, and nbclient under papermill and nbconvert, say that they would not. Environment variables are no
    such sign: a kernel inherits them from whatever started it, such as a notebook that calls papermill. False outside
    Jupyter.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def panel(explorer: Explorer) -> Any:
    """Model, image, kind of noise and scale as widgets, over a picture that follows every move (ipywidgets.VBox).

    What cannot be shown is told under the picture, which stays as it was: an error in a callback would be lost.

    Raises:
        ModuleNotFoundError: ipywidgets is not installed.
    """
    widgets = optional("ipywidgets", "lab")
    low, high = SCALES
    last = len(explorer.subject(explorer.models[0]).images) - 1
    start = Choice(explorer.models[0])
    controls = {
        "model": widgets.Dropdown(options=explorer.models, value=start.model, description="model"),
        "image": widgets.IntSlider(value=start.image, min=0, max=last, description="image"),
        "kind": widgets.Dropdown(options=KINDS, value=start.kind, description="noise"),
        "scale": widgets.FloatSlider(value=start.scale, min=low, max=high, step=0.1, description="scale"),
    }
    picture, told = widgets.Image(format="png"), widgets.Label()

    def redraw(_: Any = None) -> None:
        choice = Choice(**{name: control.value for name, control in controls.items()})
        if not explorer.is_open(choice.model):
            told.value = f"opening {choice.model}"
        started = time.perf_counter()
        try:
            picture.value = png([explorer.show(choice)])
        except (ValueError, TypeError, KeyError, OSError, ArithmeticError, ImportError) as error:
            told.value = str(error)
        else:
            told.value = f"{time.perf_counter() - started:.2f} s"

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    rows = [widgets.HBox([controls[name] for name in pair]) for pair in (("model", "image"), ("kind", "scale"))]
    return widgets.VBox([*rows, picture, told])


def present(explorer: Explorer, choices: Sequence[Choice], *, live: bool | None = None) -> Any:
    """The panel where somebody can move it, else one still picture of some choices, as the value of a cell.

    Args:
        choices: of the still picture.
        live: True or False overrides `has_front_end`.
    Raises:
        As `panel` and `Explorer.show`.
    """
    if has_front_end() if live is None else live:
        return panel(explorer)
    return Image(png([explorer.show(choice) for choice in choices]))
