"""Colours and marks: one a method, in every figure."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from nslib import palette, plots
from nslib.finetune.objectives import OBJECTIVES
from nslib.runtime import generator


def test_every_objective_has_a_colour_of_its_own():
    drawn = [palette.COLOURS[name] for name in (*OBJECTIVES, "base")]
    assert len(set(drawn)) == len(drawn)


def test_differences_stand_at_their_column_in_the_colour_of_their_method():
    rows = [("clean", "sam", 1.0), ("clean", "mixup", -2.0), ("fgsm", "sam", 3.0)]
    table = pd.DataFrame(rows, columns=["column", "model", "difference"])
    table = table.assign(difference_low=table.difference - 1, difference_high=table.difference + 1)
    ax = plots.differences(table, plt.figure().subplots())
    plt.close("all")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["clean", "fgsm"]
    sam, mixup = (container.lines[0] for container in ax.containers)
    assert (sam.get_color(), mixup.get_color()) == (palette.COLOURS["sam"], palette.COLOURS["mixup"])
    assert sam.get_ydata().tolist() == [1, 3]
    assert sam.get_xdata()[0] < 0 < mixup.get_xdata()[0]


def test_values_are_written_over_their_marks():
    """Over those too that lie sixteen decades below the others."""
    table = pd.DataFrame({"stage": ["heads"] * 2, "noise": ["learned", "random"], "value": [1.23e-15, 0.5]})
    table = table.assign(low=table.value / 2, high=table.value * 2)
    ax = plots.points(table, plt.figure().subplots(), x="stage", told=".2g")
    assert [t.get_text() for t in ax.texts] == ["1.2e-15", "0.5"]
    assert [t.xy[1] for t in ax.texts] == [2.46e-15, 1]
    assert not plots.points(table, plt.figure().subplots(), x="stage").texts
    plt.close("all")


def test_a_heat_map_names_its_colours_and_stands_its_blocks_upright():
    table = pd.DataFrame(torch.rand(12, 3, generator=generator(0)).numpy())
    ax = plots.heat(table, plt.figure().subplots(), label="asymmetry", high=1.2, digits=2)
    ax.figure.canvas.draw()
    assert {t.get_rotation() for t in ax.get_yticklabels()} == {0}
    assert [t.get_text() for t in ax.get_yticklabels()] == [str(i) for i in range(12)]
    assert ax.figure.axes[1].get_ylabel() == "asymmetry"
    assert ax.texts[0].get_text() == f"{table.iloc[0, 0]:.2f}"
    assert ax.collections[0].get_clim() == (0, 1.2)
    plt.close("all")


def test_saliency_maps_have_a_scale_and_names_of_one_size():
    maps = {"gradient": torch.randn(2, 16, 16, generator=generator(0)), "Grad-CAM": torch.zeros(2, 16, 16)}
    maps["gradient"][1, 0, 0] = 1e3  # one pixel does not make the others white
    images = dict(zip(("source", "target"), torch.rand(2, 3, 8, 8), strict=True))
    figure = plots.saliency_sheet(images, maps)
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == ["source", "gradient", "Grad-CAM", "target", "", ""]
    assert {ax.title.get_fontsize() for ax in panels} == {6}
    assert [t.get_text() for t in bar.get_yticklabels()] == ["−1", "0", "+1"]
    assert abs(panels[4].images[0].get_array()).mean() > 0.1
    assert (panels[2].images[0].get_array() == 0).all()
    plt.close("all")


@pytest.mark.parametrize("width", [3.6, 6.8])
def test_a_long_caption_stays_inside_its_figure(width):
    figure, _ = plt.subplots(figsize=(width, 2))
    plots.caption(figure, "mean of several seeds; whiskers: 95 % of WIDE M's and W's; " * 6)
    figure.canvas.draw()
    box = figure._supxlabel.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y0 >= 0


def test_a_caption_breaks_no_line_before_its_unit():
    figure, _ = plt.subplots(figsize=(1, 2))
    plots.caption(figure, "whiskers over seeds: 95 %, n = 4000")
    assert figure._supxlabel.get_text().split("\n") == ["whiskers over seeds:", "95\xa0%, n\xa0=\xa04000"]
    plt.close("all")


def test_an_axis_spans_at_least_so_much():
    _, (narrow, wide) = plt.subplots(1, 2)
    narrow.set_ylim(97, 98)
    wide.set_ylim(0, 50)
    for ax in (narrow, wide):
        plots.span_at_least(ax, 4)
    assert narrow.get_ylim() == (95.5, 99.5)
    assert wide.get_ylim() == (0, 50)


def test_costly_columns_have_an_axis_of_their_own():
    table = pd.DataFrame({"column": ["clean", "cw", "c", "clean"], "value": [1, 90, 2, 3]})
    _, panels = plots.panels(table, figsize=(4, 2))
    assert [rows.value.tolist() for _, rows in panels] == [[1, 2, 3], [90]]
    _, panels = plots.panels(table[table.column != "cw"], figsize=(4, 2))
    assert [len(rows) for _, rows in panels] == [3]
