"""The gradient of a batch, dealt out over threads: the same, in order, and nothing of it left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from conftest import random_images, tiny_vit

from nslib.attacks.ascent import image_gradient
from nslib.attacks.gradient import pgd
from nslib.finetune.cost import metered
from nslib.staged import frozen


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def number_of_a_new_thread():
    """Of torch's threads: the one that is begun next takes over what was set last anywhere."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def squares(images, weights):
    """A sum over images whose gradient is 2 w x."""
    return (images.square() * weights.reshape(-1, 1, 1, 1)).sum()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_image_gets_its_own_gradient_whatever_the_threads(count):
    images, weights = torch.rand(5, 3, 4, 4), torch.arange(5.0)
    with threads(count):
        found = image_gradient(squares, images, weights)
        assert torch.get_num_threads() == number_of_a_new_thread() == count
    assert torch.equal(found, 2 * images * weights.reshape(-1, 1, 1, 1))
    assert not images.requires_grad


@pytest.mark.parametrize(("count", "parts", "each"), [(2, [2, 3], 1), (9, [2, 2, 2, 2], 2)])
def test_parts_are_computed_side_by_side_with_their_share_of_the_threads(count, parts, each):
    """The parts wait for each other inside the loss: one after the other they would wait in vain."""
    meet, seen = threading.Barrier(len(parts), timeout=60), []

    def loss(images):
        meet.wait()
        seen.append((len(images), torch.get_num_threads()))
        return images.sum()

    with threads(count):
        image_gradient(loss, torch.rand(sum(parts), 3, 4, 4))
    assert sorted(seen) == [(part, each) for part in parts]


def test_under_autocast_the_batch_stays_whole():
    def loss(images):
        assert torch.is_autocast_enabled("cpu")
        assert len(images) == 4
        return images.sum()

    with threads(2), torch.autocast("cpu", dtype=torch.bfloat16):
        image_gradient(loss, torch.rand(4, 3, 4, 4))


def test_an_error_of_a_part_is_the_error_and_the_threads_are_as_before():
    def loss(images):
        raise FloatingPointError("NaN logits")

    with threads(2):
        with pytest.raises(FloatingPointError, match="NaN logits"):
            image_gradient(loss, torch.rand(4, 3, 4, 4))
        assert torch.get_num_threads() == number_of_a_new_thread() == 2


def test_an_attack_of_several_threads_is_that_of_one_and_counted_whole():
    model, labels = tiny_vit(), torch.arange(6)
    images = random_images(model, 6)
    found = {}
    for run, count in (("one", 1), ("three", 3), ("again", 3)):
        with threads(count), frozen(model), metered(model) as meter:
            points = pgd(model, images, labels, eps=0.5, step=0.2, steps=3, norm="l2")
        found[run] = points, meter.passes
    assert found["one"][1] == found["three"][1]
    assert torch.equal(found["three"][0], found["again"][0])
    torch.testing.assert_close(found["three"][0], found["one"][0], rtol=0, atol=1e-5)
