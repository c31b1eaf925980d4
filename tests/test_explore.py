"""Exploring: a view is what the model says, the panel follows its widgets, and nobody is shown a widget in vain."""

import gc
import io
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from conftest import make_vit, random_images
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image as Picture

from nslib.analysis.watermark import nearest
from nslib.config import NoiseConfig
from nslib.data.source import open_source
from nslib.explore.drawing import draw, png
from nslib.explore.panel import has_front_end, panel, present
from nslib.explore.subject import KINDS, PIXEL_KINDS, TOKEN_KINDS, prepare
from nslib.explore.view import Choice, Explorer, open_explorer
from nslib.nullspace.encoder import learn_noise
from nslib.nullspace.membership import make_pool, noise_gap
from nslib.profiles import resolve
from nslib.runtime import generator

ipywidgets = pytest.importorskip("ipywidgets")

EPS = 0.03
NAMES = [f"class {i}" for i in range(10)]
LABELS = torch.arange(24) // 6
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
TINY = {"device": "cpu", "pool": 8, "heldout": 4, "approximate.noise.steps": 1, "approximate.noise.batch": 8}


def learn(model, pool):
    return learn_noise(model, pool, NoiseConfig(eps=EPS, steps=400, batch=24), generator=generator(0))


@pytest.fixture
def subject(vit, pool):
    """The images of the pool's held-out part, and the noise that was stopped on them."""
    return prepare(vit, random_images(vit, 72)[-24:], LABELS, NAMES, learn(vit, pool))


@pytest.fixture
def explorer(subject):
    return Explorer({"small": lambda: subject})


@pytest.fixture
def blind():
    """A model whose patch embedding, 48 -> 48, sees every pixel."""
    model = make_vit(patch_size=4)
    images = random_images(model, 24)
    return prepare(model, images, LABELS, NAMES, learn(model, make_pool(model, images, heldout=8)))


def test_fixtures_are_what_they_say(subject, blind):
    assert subject.learned.converged
    assert subject.kinds == KINDS
    assert blind.kinds == TOKEN_KINDS


# Views


@EACH_KIND
def test_scale_zero_changes_nothing(explorer, kind):
    view = explorer.show(Choice("small", 5, kind, 0.0))
    torch.testing.assert_close(view.after, view.before)
    assert view.norm == 0
    assert view.gap < 1e-9
    if kind in PIXEL_KINDS:
        assert torch.equal(view.changed, view.image)
        assert view.norms is None
    else:
        assert not view.norms.any()
        assert view.changed is None


@pytest.mark.parametrize("scale", [-20.0, -1.0, 0.5, 20.0])
@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_exact_noise_changes_no_prediction_at_any_scale(explorer, kind, scale):
    for image in range(0, 24, 5):
        view = explorer.show(Choice("small", image, kind, scale))
        assert view.match
        assert view.gap < 1e-6
        assert view.shift < 1e-4 * view.norm
        assert view.norm == pytest.approx((view.changed - view.image).norm().item(), rel=1e-4)
        assert view.norm > 5 * abs(scale)


def test_learned_noise_stays_inside_eps_where_its_controls_do_not(explorer):
    gaps = {k: sum(explorer.show(Choice("small", i, k)).gap for i in range(24)) / 24 for k in TOKEN_KINDS}
    assert gaps["learned"] < EPS < min(gaps["permuted"], gaps["random"])


def test_controls_have_the_norm_of_the_learned_noise(explorer, subject):
    norms = [explorer.show(Choice("small", 0, kind, -2.0)).norm for kind in TOKEN_KINDS]
    assert norms == pytest.approx([2 * subject.learned.norm] * 3)


@EACH_KIND
def test_view_agrees_with_the_model(explorer, subject, vit, kind):
    choice = Choice("small", 7, kind, 1.5)
    view, image = explorer.show(choice), subject.images[7:8]
    assert torch.equal(view.image, image[0])
    with torch.no_grad():
        before = vit(image).softmax(1)[0]
        tokens = vit.embed(image)
        if kind in PIXEL_KINDS:
            after = vit(view.changed.unsqueeze(0)).softmax(1)[0]
        else:
            after = vit.logits_from_tokens(tokens + 1.5 * subject.noises[kind]).softmax(1)[0]
            expected = (1.5 * subject.noises[kind][0]).square().sum(1).sqrt().reshape(2, 2)
            torch.testing.assert_close(view.norms, expected)
    torch.testing.assert_close(view.before, before)
    torch.testing.assert_close(view.after, after)
    assert view.gap == pytest.approx((after - before).square().sum().item(), abs=1e-5)
    assert view.predictions == (before.argmax().item(), after.argmax().item())
    assert view.match == (view.predictions[0] == view.predictions[1])
    assert view.tokens == pytest.approx(tokens.norm().item())
    told = view.row()
    assert (told["before"], told["after"]) == tuple(NAMES[c] for c in view.predictions)
    assert (told["noise"], told["scale"], told["norm"]) == (kind, 1.5, view.norm)


def test_some_token_noise_changes_a_prediction(explorer):
    """Else nothing above would tell a noise from none."""
    assert not all(explorer.show(Choice("small", i, "permuted", 2.0)).match for i in range(24))


def test_patch_noise_has_the_peak_asked_for(vit, pool):
    subject = prepare(vit, random_images(vit, 4), torch.arange(4), NAMES, learn(vit, pool), peak=0.25)
    assert subject.noises["patch"].abs().max().item() == pytest.approx(0.25)


@pytest.mark.parametrize(("image", "target"), [(0, 6), (5, 6), (6, 12), (20, 0)])
def test_targeted_noise_leads_to_the_next_image_of_another_class(explorer, subject, image, target):
    view = explorer.show(Choice("small", image, "targeted"))
    assert view.target == target
    expected = nearest(subject.null, subject.images[image : image + 1], subject.images[target : target + 1])[0]
    torch.testing.assert_close(view.changed, expected)
    assert explorer.show(Choice("small", image, "patch")).target is None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("large"), "model must be one of small, got 'large'"),
        (Choice("small", 24), r"image must lie in 0\.\.23, got 24: open more images"),
        (Choice("small", -1), r"image must lie in 0\.\.23, got -1"),
        (Choice("small", 0, "lerned"), "kind must be one of .*learned.* for small, got 'lerned'"),
        (Choice("small", 0, "learned", float("nan")), "scale must be finite, got nan"),
    ],
)
def test_choices_that_are_none(explorer, choice, message):
    with pytest.raises(ValueError, match=message):
        explorer.show(choice)


def test_kinds_that_a_model_lacks(blind):
    message = "kind must be one of learned, permuted, random for seeing, whose patch embedding sees every pixel"
    with pytest.raises(ValueError, match=message):
        Explorer({"seeing": lambda: blind}).show(Choice("seeing", 0, "targeted"))


def test_images_of_one_class_only(vit, subject):
    with pytest.raises(ValueError, match=r"two classes at least, got 5 of 1: `targeted` lays one"):
        prepare(vit, subject.images[:5], LABELS[:5], NAMES, subject.learned)


def test_a_model_is_opened_when_asked_for_and_once(subject):
    opened = []
    explorer = Explorer({name: lambda name=name: opened.append(name) or subject for name in ("a", "b")})
    assert (explorer.models, opened) == (("a", "b"), [])
    for image in range(3):
        explorer.show(Choice("b", image))
    assert opened == ["b"]
    assert explorer.is_open("b")
    assert not explorer.is_open("a")


def test_subject_of_settings_learns_on_train_and_shows_val():
    settings = resolve("smoke", overrides=TINY | {"patch.peak": 0.25})
    subject = open_explorer(settings, images=12).subject("shapes_vit")
    source = open_source(settings.data, subject.model)
    images, labels = source.take("val", 12)
    assert torch.equal(subject.images, images)
    assert torch.equal(subject.labels, labels)
    assert subject.names == source.names()
    assert subject.noises["patch"].abs().max().item() == pytest.approx(0.25)
    pool = make_pool(subject.model, source.take("train", 12).images, heldout=4)
    assert subject.learned.gap_heldout == pytest.approx(noise_gap(subject.model, pool.heldout, subject.learned.noise))


# Pictures


def find_axes(figure, title):
    (ax,) = [a for a in figure.axes if title in a.get_title() + a.get_title(loc="right")]
    return ax


@pytest.mark.parametrize("kind", ["targeted", "permuted"])
def test_picture_shows_the_view(explorer, subject, kind):
    view, figure = explorer.show(Choice("small", 3, kind, 2.0)), Figure(layout="none")
    draw(view, figure)
    shown = find_axes(figure, f"{kind} noise × 2").images[0]
    if kind == "targeted":
        assert "image 6" in shown.axes.get_title()
        torch.testing.assert_close(torch.as_tensor(shown.get_array()), view.changed.clamp(0, 1).permute(1, 2, 0))
    else:
        torch.testing.assert_close(torch.as_tensor(shown.get_array()), view.norms)
        assert shown.get_clim() == (0, subject.largest)
        assert view.norms.max() <= subject.largest
    assert find_axes(figure, f"image 3: {NAMES[LABELS[3]]}").images
    widths = [bar.get_width() for bar in find_axes(figure, "gap").patches]
    likeliest = torch.stack((view.before, view.after)).amax(0).topk(5).indices
    assert widths == pytest.approx([*view.before[likeliest].tolist(), *view.after[likeliest].tolist()])


def test_title_tells_the_predictions(explorer):
    views = [explorer.show(Choice("small", i, "permuted", 2.0)) for i in range(24)]
    for view in (next(v for v in views if not v.match), explorer.show(Choice("small", 0, "patch"))):
        figure = Figure(layout="none")
        draw(view, figure)
        before, after = (NAMES[c] for c in view.predictions)
        told = f"still {before}, gap < 1e-09" if view.match else f"{before} → {after}, gap {view.gap:.2g}"
        assert find_axes(figure, "gap").get_title(loc="right") == told


def test_picture_tells_that_the_noise_did_not_get_there(subject):
    early = replace(subject, learned=replace(subject.learned, converged=False))
    for shown, kind, outside in ((subject, "learned", False), (early, "learned", True), (early, "random", False)):
        figure = Figure(layout="none")
        draw(Explorer({"small": lambda shown=shown: shown}).show(Choice("small", 0, kind)), figure)
        assert figure.texts[-1].get_text().endswith("; its search ended outside ε = 0.03") == outside


def test_long_names_of_classes_are_cut(subject):
    named = replace(subject, names=["American Staffordshire terrier"] * 10)
    figure = Figure(layout="none")
    draw(Explorer({"small": lambda: named}).show(Choice("small")), figure)
    assert find_axes(figure, "gap").get_yticklabels()[0].get_text() == "American Staffordsh…"


def test_one_row_a_view_and_nothing_left_open(explorer):
    sizes = []
    for count in (1, 3):
        with Picture.open(io.BytesIO(png([explorer.show(Choice("small", i)) for i in range(count)]))) as picture:
            sizes.append(picture.size)
    (width, height), (wide, high) = sizes
    assert (wide, high) == (width, 3 * height)
    assert plt.get_fignums() == []


def test_drawing_leaves_no_old_garbage(explorer):
    """One collection a figure, of young objects: grown old they cost half a second every fifteenth move."""
    view, collected = explorer.show(Choice("small")), []

    def note(phase, info):
        if phase == "start":
            collected.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        for _ in range(3):
            png([view])
    finally:
        gc.callbacks.remove(note)
    assert collected == [1, 1, 1]
    assert gc.isenabled()


# The panel


def parts(box):
    model, image, kind, scale = (control for row in box.children[:2] for control in row.children)
    return model, image, kind, scale, *box.children[2:]


def test_a_move_of_any_widget_redraws(explorer, subject):
    explorer = Explorer({"small": lambda: subject, "again": lambda: subject})
    model, image, kind, scale, picture, told = parts(panel(explorer))
    assert (image.min, image.max, scale.min, scale.max) == (0, 23, -2, 2)
    assert picture.value == png([explorer.show(Choice("small"))])
    now = {"model": "small"}
    for name, control, value in (
        ("kind", kind, "patch"), ("scale", scale, -1.5), ("image", image, 4), ("model", model, "again")
    ):  # fmt: skip
        before, now[name] = picture.value, value
        control.value = value
        assert picture.value == png([explorer.show(Choice(**now))])
        assert picture.value != before
        assert told.value.endswith(" s")


def test_panel_tells_what_cannot_be_shown(explorer, subject, blind):
    explorer = Explorer({"small": lambda: subject, "seeing": lambda: blind})
    model, _, kind, _, picture, told = parts(panel(explorer))
    kind.value = "patch"
    before = picture.value
    model.value = "seeing"
    assert "kind must be one of learned, permuted, random for seeing" in told.value
    assert picture.value == before
    kind.value = "random"
    assert picture.value == png([explorer.show(Choice("seeing", kind="random"))])


@pytest.mark.parametrize("error", [FileNotFoundError("no weights at far_away"), TypeError("no plain ViT")])
def test_panel_tells_that_a_model_cannot_be_opened(subject, error):
    def fail():
        raise error

    model, *_, told = parts(panel(Explorer({"small": lambda: subject, "lost": fail})))
    model.value = "lost"
    assert told.value == str(error)


def test_panel_without_ipywidgets(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ModuleNotFoundError, match=r"this needs ipywidgets: pip install 'nslib\[lab\]'"):
        panel(explorer)


def test_panel_or_picture(explorer, monkeypatch):
    choices = [Choice("small", 2, kind) for kind in ("patch", "random")]
    still = present(explorer, choices)
    assert not has_front_end()  # pytest is none
    assert still.data == png([explorer.show(choice) for choice in choices])
    assert isinstance(present(explorer, choices, live=True), ipywidgets.VBox)
    monkeypatch.setattr("nslib.explore.panel.has_front_end", lambda: True)
    assert isinstance(present(explorer, choices), ipywidgets.VBox)
    assert isinstance(present(explorer, choices, live=False), type(still))


@pytest.mark.slow
def test_client_of_the_kernel_decides():
    """nbclient, under papermill and nbconvert, gets a picture; with input allowed, as by a Lab, a panel."""
    code = f"""
from nslib.explore.panel import present
from nslib.explore.view import Choice, open_explorer
from nslib.profiles import resolve
explorer = open_explorer(resolve("smoke", overrides={TINY}), images=8)
explorer.subject("shapes_vit")
"""
    shown = 'present(explorer, [Choice("shapes_vit")])'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (code, shown, shown)])
    client = NotebookClient(notebook, kernel_name="python3", timeout=120)
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.kc.allow_stdin = number == 2
            client.execute_cell(cell, number)
    kinds = [{k for o in cell.outputs for k in o.get("data", {})} for cell in notebook.cells[1:]]
    widget = "application/vnd.jupyter.widget-view+json"
    assert "image/png" in kinds[0]
    assert widget not in kinds[0]
    assert widget in kinds[1]
