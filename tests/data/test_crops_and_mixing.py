"""Cropshift, CutMix and MixUp against slow loops and counted pixels; draws of the loader; soft labels in training."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nsr.attacks import GradientAttack
from nsr.data import CropShift, CutMix, ImageData, MixUp, TensorImages
from nsr.data.augmentation import AUGMENTATIONS, build_augmentation
from nsr.data.mixing import Mixing
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.models import SmallCNN
from nsr.objectives import AdversarialTraining, LogitPairing, Mart, Natural, Trades
from nsr.training.module import RobustClassifier


def numbered(size, height=9, width=7):
    """Images whose pixels all differ: image, row and column can be read from each; none is 0."""
    count = size * height * width
    return (torch.arange(1, count + 1, dtype=torch.float64) / count).reshape(size, 1, height, width)


# ---------------------------------------------------------------- cropshift


def test_cropshift_is_a_moved_rectangle_of_the_published_strengths():
    images, strength = numbered(1_000), 2
    torch.manual_seed(0)
    results = CropShift(0, strength)(images)
    seen = set()
    for image, result in zip(images[:, 0], results[:, 0], strict=True):
        rows, columns = (result != 0).any(1).nonzero()[:, 0], (result != 0).any(0).nonzero()[:, 0]
        part = result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        (top,), (left,) = ((image == part[0, 0]).nonzero()[:, axis].tolist() for axis in (0, 1))
        assert torch.equal(part, image[top : top + len(rows), left : left + len(columns)])
        assert int((result != 0).sum()) == part.numel()
        seen.add((9 - len(rows), 7 - len(columns), top, left, int(rows[0]), int(columns[0])))
    # every (rows fewer, columns fewer) of a strength up to 2, and every place that leaves it inside
    expected = {
        (fewer_rows, fewer_columns, top, left, row, column)
        for fewer_rows in range(strength + 1)
        for fewer_columns in range(strength + 1 - fewer_rows)
        for top in range(fewer_rows + 1)
        for row in range(fewer_rows + 1)
        for left in range(fewer_columns + 1)
        for column in range(fewer_columns + 1)
    }
    assert seen == expected


def test_cropshift_strengths_are_uniform_and_split_uniformly():
    torch.manual_seed(1)
    results = CropShift(1, 3)(torch.ones(12_000, 1, 8, 8))[:, 0]
    rows, columns = (8 - results.amax(axis).sum(1).long() for axis in (2, 1))
    assert (torch.stack([rows + columns == s for s in (1, 2, 3)]).double().mean(1) - 1 / 3).abs().max() < 0.02
    shares = columns[rows + columns == 3].bincount().double()
    assert (shares / shares.sum() - 1 / 4).abs().max() < 0.03
    assert torch.equal(CropShift(0, 0)(results[:, None]), results[:, None])


@pytest.mark.parametrize("settings", [{"lowest": -1}, {"lowest": 3, "highest": 2}, {"highest": 2.5}])
def test_strengths_out_of_range(settings):
    with pytest.raises(InputError, match="est is .*; it must be a whole number at least"):
        CropShift(**settings)


def test_a_strength_beyond_the_image():
    with pytest.raises(InputError, match="strength of cropshift is 10 for images of 8 x 9 pixels; it must be below 8"):
        CropShift()(torch.zeros(2, 1, 8, 9))


# ---------------------------------------------------------------- CutMix, MixUp


def constant(size, side=16):
    """Image i has the pixel value i, and the class i: what is in the result can be counted."""
    images = torch.arange(size, dtype=torch.float64)[:, None, None, None].expand(-1, 2, side, side)
    return images, torch.eye(size, dtype=torch.float64)


def test_the_labels_of_cutmix_are_counted_areas_of_rectangles():
    images, labels = constant(512)
    torch.manual_seed(0)
    mixed, soft = CutMix()(images, labels)
    others = []
    for number, (image, label) in enumerate(zip(mixed, soft, strict=True)):
        assert torch.equal(image[0], image[1])
        values, counts = image[0].unique(return_counts=True)
        expected = torch.zeros(512, dtype=torch.float64)
        expected[values.long()] = counts.double() / 256
        assert torch.equal(label, expected)
        box = image[0] != number
        assert int(box.sum()) == int(box.any(0).sum() * box.any(1).sum())  # a rectangle
        others += [int(value) for value in values if value != number]
    assert len(set(others)) == len(others)  # a permutation
    own = soft.diagonal()
    assert len(own.unique()) > 40  # each image has its own box
    # of lambda uniform and a center at a pixel: the mean by a plain loop over the paper's algorithm
    areas = []
    for lam in torch.rand(4_000).tolist():
        edges = []
        for _ in range(2):
            side, center = int(16 * (1 - lam) ** 0.5), int(torch.randint(16, ()))
            edges.append(min(16, center - side // 2 + side) - max(0, center - side // 2))
        areas.append(edges[0] * edges[1] / 256)
    assert float(1 - own.mean()) == pytest.approx(sum(areas) / len(areas), abs=0.03)


def test_pixels_and_labels_of_mixup_have_one_lambda():
    images, labels = constant(512)
    torch.manual_seed(0)
    mixed, soft = MixUp(alpha=0.5)(images, labels)
    classes = torch.arange(512, dtype=torch.float64)
    assert torch.allclose(mixed, (soft @ classes)[:, None, None, None].expand_as(mixed))
    assert torch.allclose(soft.sum(1), torch.ones(512, dtype=torch.float64)) and int((soft > 0).sum(1).max()) == 2
    own = soft.diagonal()
    assert len(own.unique()) > 400
    # the moments of Beta(1/2, 1/2): mean 1/2, variance 1/8
    assert float(own.mean()) == pytest.approx(1 / 2, abs=0.05) and float(own.var()) == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_an_image_is_mixed_with_its_probability(kind):
    images, labels = constant(600)
    torch.manual_seed(0)
    mixed, soft = kind(probability=0.25)(images, labels)
    unmixed = soft.diagonal() == 1
    assert torch.equal(mixed[unmixed], images[unmixed]) and torch.equal(soft[unmixed], labels[unmixed])
    assert 0.68 < float(unmixed.double().mean()) < 0.85  # a box may also have no area
    for settings in ({"alpha": 0}, {"probability": 1.5}):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is .*; it must be a number"):
            kind(**settings)


# ---------------------------------------------------------------- by name, in the loader


class Made(ImageData):
    """24 different images of 3 x 16 x 16, as uint8."""

    def load(self, split):
        images = torch.randint(256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return TensorImages(images, torch.arange(24) % 3)


def made(augmentation, **changes):
    settings = dict(channels=3, image_size=16, classes=3, mean=[0.5] * 3, std=[0.5] * 3, batch_size=8)
    data = Made(**{**settings, "validation_images": 6, "augmentation": augmentation, **changes})
    data.setup("fit")
    return data


def by_image(data, epoch=0):
    """The images of an epoch, in the order of the training set."""
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    order = [index for batch in loader.batch_sampler for index in batch]
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(labels, data.training_set.labels[order])
    result = torch.empty_like(images)
    result[order] = images
    return result


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("auto_augment", "rand_augment", "random_erasing")]


@pytest.mark.parametrize("name", ["trivial_augment", "cutout", *SLOW])
def test_64_copies_of_one_image_are_augmented_differently_by_name(name):
    augment, mix = build_augmentation(name)
    assert mix is None
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    augment.preflight((3, 32, 32))
    torch.manual_seed(0)
    results = augment(image.expand(64, -1, -1, -1))
    assert results.min() >= 0 and results.max() <= 1 and results.dtype == torch.float32
    assert len({result.numpy().tobytes() for result in results}) > 20
    if name == "cutout":  # squares of 16 x 16 pixels
        erased = (results == 0).all(1)
        assert (erased.sum((1, 2)) == 256).all() and (erased.any(1).sum(1) == 16).all()


def shaded(image):
    """For a single image alone, as torchvision's are."""
    assert image.ndim == 3
    return image * torch.rand(())


def black(image):
    return image * 0


def test_what_is_applied_image_by_image_is_read_so_and_depends_on_seed_epoch_and_index():
    data = made(["crop_flip", shaded])
    first = by_image(data)
    assert torch.equal(data.augment(first), first)  # nothing is left to the training step
    assert torch.equal(by_image(made(["crop_flip", shaded], batch_size=5)), first)
    for other in (by_image(data, epoch=1), by_image(made(["crop_flip", shaded], seed=1))):
        assert (other != first).flatten(1).any(1).sum() == 18
    assert len({image.amax().item() for image in first}) == 18
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)  # this process reads half of each batch
    loader = data.train_dataloader()
    for batch, (images, _) in zip(loader.batch_sampler, loader, strict=True):
        assert torch.equal(images, first[batch])


def test_transforms_of_batches_at_the_end_are_left_to_the_step():
    data = made([shaded, "cropshift"])
    first = by_image(data)
    assert torch.equal(first, by_image(made(shaded)))
    assert not torch.equal(data.augment(first), first)
    assert torch.equal(by_image(made("cropshift")), by_image(made("none")))
    data = made([black, "cropshift"])  # after which no draw of another transform is seen
    assert torch.equal(by_image(data), torch.zeros(18, 3, 16, 16))
    assert [applier.__name__ for applier in data.augment.appliers] == ["_to_images", "_to_batch"]


@pytest.mark.slow
def test_worker_processes_make_no_difference():
    assert torch.equal(by_image(made("rand_augment", num_workers=2), epoch=1), by_image(made("rand_augment"), epoch=1))


def test_settings_of_mixing():
    augment, mix = build_augmentation(["crop_flip", "cutmix", MixUp(alpha=0.3)])
    assert len(augment.transforms) == 1 and [type(each) for each in mix.transforms] == [CutMix, MixUp]
    assert build_augmentation("mixup")[0] is None
    with pytest.raises(InputError, match="data.augmentation mixes images by .*CutMix first; put it at the end"):
        build_augmentation(["cutmix", "crop_flip"])
    assert set(AUGMENTATIONS) >= {"none", "crop_flip", "cutmix", "mixup"}


def test_draws_of_mixing_are_those_of_the_step():
    mix = Mixing([CutMix(), MixUp(probability=0.5)])
    images, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % 5
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(mix(images, labels, classes=5))
    assert all(torch.equal(*parts) for parts in zip(*results, strict=True))
    assert not torch.equal(mix(images, labels, classes=5)[0], results[0][0])
    assert results[0][1].shape == (16, 5)


OWN = torch.Generator()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda images, labels: images, "failed in a trial on images of shape .3, 8, 8.: ValueError"),
        (lambda images, labels: (images[:, :1], labels), "gives images and labels of shapes"),
        (lambda images, labels: (images * 2, labels), r"gives pixels in \[0.*; they must be in"),
        (lambda images, labels: (images, 2 * labels), "gives labels such as .*; they must be probabilities"),
        (lambda images, labels: (images.double(), labels), "gives torch.float32, torch.float64 for images and labels"),
        (lambda images, labels: (torch.rand((), generator=OWN) * images, labels), "gives different images with equal"),
    ],
)
def test_mixing_transforms_that_cannot_be_used(transform, message):
    _, mix = build_augmentation([transform])
    with pytest.raises(InputError, match=f"data.augmentation .*{message}"):
        mix.preflight((3, 8, 8), 4)


# ---------------------------------------------------------------- soft labels in training


def module_of(objective, *, attack=None, mix=None, **settings):
    torch.manual_seed(0)
    net = SmallCNN(channels=1, classes=3, image_size=8, width=2)
    attack = attack or GradientAttack(epsilon=0.1, steps=2)
    layers = find_layers(net, torch.zeros(2, 1, 8, 8))
    return RobustClassifier(
        net, layers=layers, classes=3, objective=objective, train_attack=attack, mix=mix, **settings
    ).train()


class Doubled(nn.Module):
    """Each image is mixed with the next one, with a lambda of 3/4."""

    def forward(self, images, labels):
        return images, 0.75 * labels + 0.25 * labels.roll(1, 0)


@pytest.mark.parametrize("kind", [Natural, AdversarialTraining, LogitPairing, Trades])
def test_an_objective_on_soft_labels_is_linear_in_them(kind):
    """By the definition: the cross-entropy is the mean of those of the classes, weighted by the probabilities."""
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    module = module_of(kind(), mix=Mixing([Doubled()]))
    seen = {}
    module.before_passes.append(lambda views, labels: seen.update(views, labels=labels))
    net = copy.deepcopy(module.net)
    got = module.training_step((images, labels), 0)
    soft = 0.75 * F.one_hot(labels, 3).float() + 0.25 * F.one_hot(labels, 3).float().roll(1, 0)
    assert torch.equal(seen["labels"], soft)

    def total(classes):  # the passes in the order of the objective, each by its own network
        logits = {view: copy.deepcopy(net)(seen[view]) for view in module.views}
        terms = module.objective(**{f"{view}_logits": each for view, each in logits.items()}, labels=classes)
        return sum(terms.values())

    expected = 0.75 * total(labels) + 0.25 * total(labels.roll(1, 0))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    accuracy = module.train_metrics.compute()
    logits = copy.deepcopy(net)(seen[module.views[0]])
    name = {"clean": "clean_accuracy", "adversarial": "robust_accuracy"}[module.views[0]]
    assert accuracy[f"train/{name}"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_class_indices_alone_are_refused_before_a_step():
    mix = Mixing([CutMix()])
    with pytest.raises(
        InputError, match="objective takes class indices alone .*Mart has no.* choose another objective"
    ):
        module_of(Mart(), mix=mix)
    margin = GradientAttack(epsilon=0.1, steps=2, loss="margin")
    with pytest.raises(
        InputError, match="train_attack takes class indices alone .*labels; leave cutmix and mixup out, or"
    ):
        module_of(AdversarialTraining(), attack=margin, mix=mix)
    module_of(Natural(), attack=margin, mix=mix)  # which needs no attack
    module_of(Mart())
