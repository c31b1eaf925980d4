"""Colours and marks: one a method, in every figure."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from nslib import plots
from nslib.finetune.objectives import OBJECTIVES


def test_every_objective_has_a_colour_of_its_own():
    drawn = [plots.COLOURS[name] for name in (*OBJECTIVES, "base")]
    assert len(set(drawn)) == len(drawn)


def test_differences_stand_at_their_column_in_the_colour_of_their_method():
    rows = [("clean", "sam", 1.0), ("clean", "mixup", -2.0), ("fgsm", "sam", 3.0)]
    table = pd.DataFrame(rows, columns=["column", "model", "difference"])
    table = table.assign(difference_low=table.difference - 1, difference_high=table.difference + 1)
    ax = plots.differences(table, plt.figure().subplots())
    plt.close("all")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["clean", "fgsm"]
    sam, mixup = (container.lines[0] for container in ax.containers)
    assert (sam.get_color(), mixup.get_color()) == (plots.COLOURS["sam"], plots.COLOURS["mixup"])
    assert sam.get_ydata().tolist() == [1, 3]
    assert sam.get_xdata()[0] < 0 < mixup.get_xdata()[0]


@pytest.mark.parametrize("width", [3.6, 6.8])
def test_a_long_caption_stays_inside_its_figure(width):
    figure, _ = plt.subplots(figsize=(width, 2))
    plots.caption(figure, "mean of several seeds; whiskers: 95 % of WIDE M's and W's; " * 6)
    figure.canvas.draw()
    box = figure._supxlabel.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y0 >= 0
