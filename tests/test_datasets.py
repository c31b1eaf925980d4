"""Data sets of torch and torchvision as what finetuning and evaluation ask images of."""

import pytest
import torch
from conftest import TINY, make_vit, tiny_vit
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from nslib.config import FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.datasets import DatasetSource
from nslib.data.source import checked
from nslib.evaluate.suite import evaluate_model
from nslib.finetune.rounds import finetune_model
from nslib.models import load_model, reset_head
from nslib.runtime import generator
from nslib.store import digest

CFG = FinetuneConfig(rounds=1, steps=2, batch=4, pool=8, heldout=4, precision="float32",
                     noise=NoiseConfig(limit=0.1, steps=5, batch=4))  # fmt: skip


def tensors(n=40, side=24, dtype=torch.float32):
    """Images whose first value tells their place, of class place modulo ten, sorted by class."""
    images = torch.rand(n, 3, side, side, generator=generator(0))
    images[:, 0, 0, 0] = torch.arange(n) / n
    images = (images * 255).round().to(dtype) if dtype == torch.uint8 else images
    return TensorDataset(images, torch.arange(n) * 10 // n)


class Pictures(Dataset):
    """PIL images of one colour, as torchvision's data sets give them without a transform."""

    def __init__(self, n=12, mode="RGB"):
        self.n, self.mode = n, mode

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return Image.new("RGB", (40, 30), (20 * i, 0, 0)).convert(self.mode), i % 10


def test_each_image_once_with_its_label_in_an_order_of_the_seed():
    model, items = tiny_vit(), tensors()
    source = DatasetSource(model, {"train": items, "val": items})
    images, labels = checked(source.take("train", 40), 40, model)
    places = (images[:, 0, 0, 0] * 40).round().long()
    assert sorted(places.tolist()) == list(range(40))
    assert torch.equal(labels, items.tensors[1][places])
    assert len(labels[:10].unique()) > 3  # sorted they would be of three classes
    assert torch.equal(source.take("train", 5, start=7).images, images[7:12])
    assert torch.equal(source.pick("train", [3, 1]).images, images[[3, 1]])
    other = DatasetSource(model, {"train": items}, seed=1)
    assert not torch.equal(other.take("train", 40).images, images)


def test_levels_and_pictures_are_images_in_0_to_1():
    model = tiny_vit()
    levels = DatasetSource(model, {"val": tensors(dtype=torch.uint8)}).take("val", 40).images
    assert levels.dtype == torch.float32
    assert 0.9 < levels.max() <= 1
    for mode in ("RGB", "L", "RGBA", "P"):
        images, labels = checked(DatasetSource(model, {"val": Pictures(mode=mode)}).take("val", 12), 12, model)
        assert images.shape == (12, 3, 24, 24)
        if mode.startswith("RGB"):  # the others have other levels
            assert images[:, 0, 0, 0].mul(255).round().sort().values.tolist() == pytest.approx(range(0, 240, 20), abs=6)
        assert sorted(labels.tolist()) == sorted(i % 10 for i in range(12))


def test_identity_follows_number_content_labels_and_order():
    model, items = tiny_vit(), tensors()
    images, labels = items.tensors
    variants = {
        "same": DatasetSource(model, {"train": tensors()}),
        "fewer": DatasetSource(model, {"train": Subset(items, range(39))}),
        "others": DatasetSource(model, {"train": TensorDataset(1 - images, labels)}),
        "labels": DatasetSource(model, {"train": TensorDataset(images, 9 - labels)}),
        "a label": DatasetSource(model, {"train": TensorDataset(images, labels + (torch.arange(40) == 23))}),
        "order": DatasetSource(model, {"train": items}, seed=1),
        "names": DatasetSource(model, {"train": items}, names="abcdefghij"),
        "version": DatasetSource(model, {"train": items}, version="mine"),
    }
    told = {name: digest(source.identity("train")) for name, source in variants.items()}
    assert len(set(told.values())) == len(told)
    larger = DatasetSource(make_vit(img_size=48), {"train": Pictures()}, version="mine")
    assert larger.identity("train") != DatasetSource(model, {"train": Pictures()}, version="mine").identity("train")
    source = DatasetSource(model, {"train": items, "val": items})
    assert digest(source.identity("train")) == told["same"] != digest(source.identity("val"))


@pytest.mark.parametrize(
    ("splits", "given", "message"),
    [
        ({"train": tensors(0)}, {}, "split train holds no image"),
        ({"train": TensorDataset(torch.rand(3, 3, 24, 24))}, {}, r"must be \(image, label\), got a tuple of 1"),
        ({"train": [{"image": 1, "label": 2}]}, {}, r"item 0 of split train must be \(image, label\), got a dict of 2"),
        ({"val": [Image.new("RGB", (40, 30))]}, {}, r"item 0 of split val must be \(image, label\), got a Image$"),
        ({"val": [("a.png", 0)]}, {}, r"must be a PIL image or a tensor \(3, 24, 24\), got a str: take its transform"),
        ({"val": tensors(side=32)}, {}, r"or a tensor \(3, 24, 24\), got a tensor \(3, 32, 32\): .*or resize it"),
        ({"val": [(torch.rand(3, 24, 24), torch.eye(10)[3])]}, {}, "label of item 0 .* a whole number, got a Tensor"),
        ({"val": [(torch.rand(3, 24, 24), "cat")]}, {}, "must be a whole number, got a str"),
        ({"val": [(Image.new("I;16", (40, 30)), 0)]}, {}, "mode I;16 has more than 8 bits a channel: convert it"),
        (tensors(), {}, "splits must be data sets by name, such as .*, got a TensorDataset"),
        ({"val": None}, {}, "split val must have a length and items, got a NoneType"),
        ({"val": tensors()}, {"names": ["a", "b"]}, "names must be 10 that differ, one for each class of shapes_vit"),
        ({"val": tensors()}, {"names": ["a"] * 10}, "names must be 10 that differ, .* got 10: a, a"),
    ],
)
def test_data_sets_that_are_none(splits, given, message):
    with pytest.raises(ValueError, match=message):
        DatasetSource(tiny_vit(), splits, **given)


def test_random_images_are_refused():
    """Also where half of the items are as they were, and the first is."""

    class Flipped(Pictures):
        def __getitem__(self, i):
            image = tensors().tensors[0][i]
            return image.flip(-1) if i and torch.rand(1) < 0.5 else image, 0

    for _ in range(5):
        with pytest.raises(ValueError, match=r"gives another image each time: leave its augmentation out.*mixup"):
            DatasetSource(tiny_vit(), {"train": Flipped()})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("val", 1), "the data set has no val, only train"),
        (("train", 41), "split train holds 40 images, asked for 0 to 41"),
        (("train", 0), "asked for 0 to 0"),
    ],
)
def test_images_that_are_not_there(asked, message):
    with pytest.raises(ValueError, match=message):
        DatasetSource(tiny_vit(), {"train": tensors()}).take(*asked)


def test_names_with_their_labels():
    given = {name: label for label, name in enumerate("jihgfedcba")}
    backwards = dict(reversed(given.items()))
    assert DatasetSource(tiny_vit(), {"val": Pictures()}, names=backwards).names() == list("jihgfedcba")
    numbers = DatasetSource(tiny_vit(), {"val": Pictures()}, names=torch.arange(10).numpy())
    assert numbers.names() == [str(i) for i in range(10)]


def test_a_head_that_came_after_the_data_set(model):
    source = DatasetSource(model, {"train": tensors()}, names="abcdefghij")
    reset_head(model, 3)
    with pytest.raises(ValueError, match="was opened for 10 classes and shapes_vit has 3 now: open it after"):
        finetune_model(model, source, CFG)


def test_a_vit_that_is_not_wrapped():
    with pytest.raises(TypeError, match="model must be a StagedViT, got VisionTransformer: wrap a ViT of timm"):
        DatasetSource(tiny_vit().vit, {"val": Pictures()})


def test_finetuned_and_measured(tmp_path):
    model = tiny_vit()
    source = DatasetSource(model, {"train": tensors(), "val": Pictures()}, names=[f"class {i}" for i in range(10)])
    assert source.names()[3] == "class 3"
    target = tmp_path / "w.safetensors"
    tuned = finetune_model(model, source, CFG, target=target)
    assert finetune_model(model, source, CFG, target=target).found
    assert load_model("shapes_vit", target, **TINY).classes == tuple(source.names())
    named = load_model("shapes_vit", target, **TINY)
    assert DatasetSource(named, {"val": Pictures()}).names() == source.names()
    with pytest.raises(ValueError, match="was finetuned for class class 0 where names has class 9: name them so"):
        DatasetSource(named, {"val": Pictures()}, names=source.names()[::-1])
    with pytest.raises(ValueError, match="the data set has no train, only val"):
        finetune_model(model, DatasetSource(model, {"val": Pictures()}), CFG)
    fewer = DatasetSource(model, {"train": Subset(tensors(), range(30))})
    with pytest.raises(ValueError, match=r"was made with other settings: .*data\.images was 40, is 30"):
        finetune_model(model, fewer, CFG, target=target)
    suite = SuiteConfig(columns=("clean", "fgsm", "sketch"), images=12, batch=6)
    found = evaluate_model(tuned.model, source, suite)
    assert list(found.hits) == ["clean", "fgsm"]
    assert found.missing == {"sketch": "the data set has no sketch, only train, val"}
    assert found.estimate("clean").n == 12
