"""Any callable as a data set: forms of datasets and items, inference, random transforms, one line for each fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset, random_split
from torchvision import datasets as sources
from torchvision.transforms import v2

from nsr.data import Digits, TensorImages, datasets, image_data, npz
from nsr.data.decoding import Reader
from nsr.data.images import LazyImages
from nsr.errors import InputError

BYTES = torch.randint(256, (24, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
LABELS = np.arange(24) % 3
SETTINGS = {"batch_size": 4, "validation_images": 6}
EXPECTED = torch.from_numpy(BYTES).permute(0, 3, 1, 2).to(torch.float32) / 255


class Listed(Dataset):
    """Items as they are given; counts its readings."""

    def __init__(self, items, **attributes):
        self.items, self.read = items, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read += 1
        return self.items[index]


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Drawn(Dataset):
    """A random crop of each image, as a transform of torchvision draws it."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return v2.RandomCrop(8, padding=2)(EXPECTED[index]), LABELS[index]


def pairs(image=lambda row: row, label=int):
    return [(image(row), label(number)) for row, number in zip(BYTES, LABELS, strict=True)]


def made(returned, **settings):
    return image_data(lambda: returned, {**SETTINGS, **settings})


def refused(returned, **settings) -> str:
    data = made(returned, **settings)

    def prepare():
        data.check_splits(["train", "test"])
        data.preflight(["train", "test"])
        data.setup()

    with pytest.raises(InputError) as caught:
        prepare()
    return str(caught.value)


# ---------------------------------------------------------------- what fits
ITEMS = {
    "PIL": pairs(Image.fromarray),
    "numpy, channels last": pairs(),
    "numpy, channels first": pairs(lambda row: row.transpose(2, 0, 1)),
    "torch, channels first": pairs(lambda row: torch.from_numpy(row).permute(2, 0, 1), torch.tensor),
    "torch, channels last": pairs(torch.from_numpy, np.int64),
    "float32": pairs(lambda row: row.astype(np.float32) / 255, lambda number: np.array([number])),
    "float64 in a mapping": [{"label": number, "image": row / 255} for row, number in pairs()],
    "three parts": [(*pair, "file.png") for pair in pairs()],
    "a mapping of Hugging Face": [{"img": row, "labels": torch.tensor(number)} for row, number in pairs()],
    "pixel_values": [{"pixel_values": torch.from_numpy(row), "label": number} for row, number in pairs()],
}


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize("form", [list, Listed, Streamed, iter])
def test_items_of_every_form_become_the_same_images(items, form, caplog):
    with caplog.at_level("INFO"):
        data = made({"train": form(items), "test": form(items)})
        data.setup("test")
    images, labels = data.test_set.__getitems__(range(24))
    torch.testing.assert_close(images, EXPECTED, rtol=0, atol=1e-7)
    assert labels.tolist() == LABELS.tolist() and images.dtype == torch.float32
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == (0 if form in (list, Listed) else 2) and all("24 images read" in row for row in logged)


ARRAYS = (BYTES, LABELS)
TENSORS = TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(LABELS))
RETURNED = {
    "mapping": ({"train": TENSORS, "test": TENSORS}, 18),
    "mapping with more": ({"train": TENSORS, "test": TENSORS, "extra": 3, "validation": None}, 18),
    "Hugging Face": ({"train": TENSORS, "validation": TENSORS, "test": TENSORS}, 24),
    "val": ({"train": TENSORS, "val": TENSORS, "test": TENSORS}, 24),
    "valid": ({"train": TENSORS, "valid": TENSORS, "test": TENSORS}, 24),
    "two": ((TENSORS, TENSORS), 18),
    "three": ([TENSORS, TENSORS, TENSORS], 24),
    "arrays": ((ARRAYS, ARRAYS), 18),
    "a random split": (random_split(TENSORS, [12, 6, 6], generator=torch.Generator().manual_seed(0)), 12),
}


@pytest.mark.parametrize(("returned", "trained"), RETURNED.values(), ids=RETURNED)
def test_datasets_of_every_form_become_splits(returned, trained):
    data = made(returned)
    data.setup()
    assert isinstance(data.training_set, TensorImages) and len(data.training_set) == trained
    assert len(data.validation_set) == (24 if trained == 24 else 6)  # a validation dataset is used as it is
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 8, 8)


def test_a_split_that_is_not_used_is_named(caplog):
    datasets.named_datasets({"train": TENSORS, "holdout": TENSORS, "test": TENSORS}, "mine")
    assert [row for row in caplog.messages if "holdout" in row]


def test_labels_that_number_no_classes_are_refused():
    labels = np.where(LABELS == 0, 10**9, LABELS)  # ids
    with pytest.raises(InputError, match="go up to 1000000000, for 24 training images"):
        made(((BYTES, labels), ARRAYS)).describe()
    assert made(((BYTES, LABELS + 30), ARRAYS), classes=40).describe().classes == 40  # the user's own


def test_facts_that_are_not_set_are_inferred():
    description = made({"train": Listed(pairs(), classes=["cat", "dog", "cow"]), "test": TENSORS}).describe()
    assert (description.channels, description.image_size, description.classes) == (3, 8, 3)
    assert description.class_names == ("cat", "dog", "cow")
    assert description.mean == pytest.approx(EXPECTED.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert description.std == pytest.approx(EXPECTED.std((0, 2, 3), correction=0).tolist(), abs=6e-5)
    constants = {"mean": [0.5] * 3, "std": [0.25] * 3}
    description = made((TENSORS, TENSORS), classes=7, **constants).describe()
    assert description.classes == 7 and description.mean == (0.5,) * 3 and len(description.class_names) == 7
    assert made({"test": TENSORS}).describe().classes == 3  # an evaluation needs no training images


def test_torchvision_datasets_fit(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                Image.fromarray(BYTES[number].repeat(2, axis=1)).save(tmp_path / split / name / f"{number}.png")
    data = image_data(lambda root: [sources.ImageFolder(root / split) for split in ("train", "test")], {
        **SETTINGS, "root": tmp_path, "image_size": 4,
    })  # fmt: skip
    data.setup()
    assert data.describe().class_names == ("cat", "dog") and data.test_set.images.shape == (12, 3, 4, 4)
    wide = Image.fromarray(BYTES[0].repeat(2, axis=1)).resize((8, 4), Image.Resampling.BILINEAR).crop((2, 0, 6, 4))
    assert np.array_equal(data.test_set.images[0], np.asarray(wide).transpose(2, 0, 1))
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    fake = [sources.FakeData(24, (3, 8, 8), 3, transform, random_offset=offset) for offset in (0, 24)]
    data = made(fake)
    data.setup()
    assert len(data.training_set) == 18 and data.training_set.images.dtype == torch.float32


def test_hugging_face_columns_and_names(monkeypatch):
    class Column(Listed):  # dataset["label"] is a column, dataset[3] an item
        def __getitem__(self, index):
            return [item[index] for item in self.items] if isinstance(index, str) else super().__getitem__(index)

    feature = type("ClassLabel", (), {"names": ["cat", "dog", "cow"]})()
    items = [{"image": row, "label": number} for row, number in pairs()]
    dataset = Column(items, features={"image": None, "label": feature})
    assert made((dataset, dataset)).describe().class_names == ("cat", "dog", "cow")
    before = dataset.read
    assert Reader(dataset, "it").labels().tolist() == LABELS.tolist()
    assert dataset.read - before < 24  # the column, not the items


def test_settings_are_passed_where_the_signature_names_them():
    got = {}

    def named(size, batch_size, image_size=None):
        got.update(size=size, batch_size=batch_size, image_size=image_size)
        return TENSORS, TENSORS

    def others(**settings):
        got.update(settings)
        return TENSORS, TENSORS

    image_data(named, {**SETTINGS, "size": 3, "image_size": 8}).prepare()
    assert got == {"size": 3, "batch_size": 4, "image_size": 8}
    got.clear()
    image_data(others, {**SETTINGS, "size": 3, "num_workers": 0}).prepare()
    assert got == {"size": 3}
    data = image_data(Digits, {**SETTINGS, "channels": 1, "image_size": 8, "classes": 10, "mean": [0.3], "std": [0.3]})
    assert isinstance(data, Digits) and data.batch_size == 4


def test_a_factory_that_draws_gives_the_same_data_for_every_seed():
    def drawn():
        x = torch.rand(30, 1, 4, 4) * np.random.rand()
        return TensorDataset(x, torch.arange(30) % 2), TensorDataset(x, torch.arange(30) % 2)

    before = torch.get_rng_state()
    means = [
        image_data(drawn, {"seed": seed, "split_seed": split}).describe().mean
        for seed, split in ((0, 0), (1, 0), (0, 1))
    ]
    assert means[0] == means[1] != means[2] and torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------- images that are not kept in memory
def test_a_large_dataset_is_read_when_needed(monkeypatch):
    expected = made((TENSORS, TENSORS))
    expected.setup()
    monkeypatch.setattr(datasets, "MEMORY_LIMIT_BYTES", 24 * 8 * 8 * 3 - 1)
    lying = Listed(pairs(), targets=(LABELS + 1).tolist())  # a target_transform that `targets` does not show
    data = made((lying, Listed(pairs(), targets=LABELS.tolist())))
    data.setup()
    assert isinstance(data.training_set, LazyImages)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(data, name)(), getattr(expected, name)(), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_random_transforms_of_a_dataset_are_a_function_of_seed_and_epoch():
    def epochs(seed, num_workers=0):
        data = made((Drawn(), TENSORS, TENSORS), seed=seed, num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        read = []
        for epoch in (0, 1):
            torch.manual_seed(epoch + num_workers)  # the state of a resumed run is another
            loader.batch_sampler.set_epoch(epoch)
            order = torch.tensor([index for batch in loader.batch_sampler for index in batch])
            read.append(torch.cat([images for images, _ in loader])[order.argsort()])
        if num_workers == 0:
            assert torch.equal(*(torch.cat([images for images, _ in data.val_dataloader()]) for _ in range(2)))
        return torch.stack(read)

    first = epochs(0)
    assert torch.equal(first, epochs(0, num_workers=1))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, epochs(1))


def test_images_that_are_evaluated_must_not_be_random():
    assert "test of " in refused((TENSORS, Drawn())) and "random transforms" in refused((TENSORS, Drawn()))
    held_out = refused((Drawn(), TENSORS))
    assert "data.validation_images are held out of train; return a validation set without the random" in held_out
    evaluation = made((Drawn(), TENSORS))
    evaluation.preflight(["test"])  # which holds nothing out
    assert len(evaluation.test_set) == 24


# ---------------------------------------------------------------- what does not fit
def items(*rows):
    return [list(rows) * 9] * 2


SOME = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "returns int; it must be {'train': dataset, 'test': dataset}"),
        (TENSORS, "returns TensorDataset; it must be"),
        ({}, "returns a mapping with the keys none; it must be"),
        ({"a": TENSORS}, "returns a mapping with the keys a; it must be"),
        ({"train": TENSORS}, "returns train; this needs test"),
        ((3, 4), "train of {name} is int; it must be a dataset of (image, label)"),
        (([], []), "train of {name} has no images; it must have at least one"),
        (((BYTES, LABELS[1:]), ARRAYS), "train of {name} has 24 images and 23 labels"),
        (("ab", "cd"), "train of {name}, item 0: it is str; it must be (image, label)"),
        (items(SOME), "train of {name}, item 0: it is Tensor; it must be (image, label)"),
        (items({"x": SOME}), "item 0: it has the keys x; it must have one of image, img, pixel_values"),
        (items((SOME, "a")), "item 0: its label is 'a'; it must be a whole number from 0"),
        (items((SOME, torch.tensor(0.5))), "item 0: its label is tensor(0.5000); it must be a whole number"),
        (items((SOME, [0, 1])), "item 0: its label is [0, 1]; it must be a whole number"),
        (items((SOME, 0)), "data.classes is 1; it must be a whole number at least 2"),
        (items((SOME, -1), (SOME, 1)), "labels go from -1 to 1; they must be at least 0"),
        (items((9 * SOME, 0)), "; they must be in [0, 1]; scale them, and leave normalization to the model"),
        (items((SOME * torch.nan, 0)), "item 0: pixels are in [nan, nan]; they must be in [0, 1]"),
        (items(((9 * SOME).int(), 0)), "item 0: pixels are int32; they must be uint8, or floating point in [0, 1]"),
        (items((SOME[0, 0], 0)), "item 0: its image has shape (4,); it must be (channel, height, width)"),
        (items(("cat.png", 0)), "item 0: TypeError: "),
        (items((SOME[:, 2:], 0)), "item 0: its image has 4 x 2 pixels; it must be square; set data.image_size"),
        (items((SOME, 0), (SOME[:, 1:, 1:], 1)), "its image has 3 x 3 pixels; it must be 4 x 4; set data.image_size"),
        (items((SOME, 0), (SOME[:1], 1)), "item 1: its image has 1 channels; data.channels is 3"),
        (items((SOME, 0), ((9 * SOME).byte(), 1)), "has uint8 and floating-point images; they must all be of one type"),
    ],
)
def test_one_line_for_each_fault(returned, message):
    assert message.replace("{name}", "test_datasets.made.<locals>.<lambda>") in refused(returned)


def test_images_of_different_sizes_need_a_size():
    images = [Image.new("RGB", (size, 5), (size, 0, 0)) for size in (5, 9)]
    returned = [[(image, label) for label, image in enumerate(images * 9)]] * 2
    assert "its image has 9 x 5 pixels; it must be square; set data.image_size, to which PIL" in refused(returned)
    data = made(returned, image_size=4, classes=18, validation_images=1, mean=[0.5] * 3, std=[0.5] * 3)
    data.setup("test")
    assert data.test_set.images.shape == (18, 3, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 4}, "data.classes is 4, but .* has 3 classes; leave data.classes out"),
        ({"sise": 4}, "data.sise is not an argument of .*; it takes none"),
        ({"num_workers": 10**6}, "data.num_workers is 1000000; it must be a whole number at least 0 and at most"),
        ({"image_size": 200_000}, "a batch of 250 images of data.image_size=200000 takes .* GB; it must fit in the"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(InputError, match=message):
        made((Listed(pairs(), classes=["a", "b", "c"]), TENSORS), **settings).describe()


def test_a_factory_that_fails():
    def broken():
        raise OSError("no\nsuch disk")

    with pytest.raises(InputError, match=r"broken failed: OSError: no such disk$"):
        image_data(broken, {}).prepare()
    with pytest.raises(InputError, match="data._target_ is 3; it must be a callable that returns datasets"):
        image_data(3, {})
    with pytest.raises(InputError, match="needs the argument path; set data.path"):
        image_data(npz, {}).prepare()
