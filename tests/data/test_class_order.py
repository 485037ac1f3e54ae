"""Class names decide which output a label is; a table of files, and the labels of real folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.data import ImageData, ImageFolder, TensorImages
from nsr.data.class_order import match_classes, read_class_order, third_party_classes
from nsr.errors import InputError

INDEX = {"0": ["n01", "tench"], "1": ["n02", "crane"], "2": ["n03", "crane"], "3": ["n04", "great white shark"]}
FILES = {
    "text": ("tench\n\ncrane\r\n", [("tench",), ("crane",)]),
    "synsets": ("n01 tench, Tinca\nn02\tcrane", [("n01 tench, Tinca", "n01"), ("n02\tcrane", "n02")]),
    "list": (json.dumps(["b", "a"]), [("b",), ("a",)]),
    "names": (json.dumps({"1": "a", "0": "b"}), [("b",), ("a",)]),
    "class_to_idx": (json.dumps({"a": 1, "b": 0}), [("b",), ("a",)]),
    "imagenet": (json.dumps(INDEX), [tuple(INDEX[str(number)]) for number in range(4)]),
}
REFUSED = ["", "one", "[1, 2]", '["a", ["b", 2]]', '{"0": "a", "2": "b"}', '{"a": 0, "b": 5}', "[", "null", '["a", []]']


@pytest.mark.parametrize("form", FILES)
def test_a_file_is_read_in_every_usual_form(form, tmp_path):
    text, expected = FILES[form]
    (tmp_path / "order").write_text(text)
    assert read_class_order(tmp_path / "order") == expected


@pytest.mark.parametrize("text", REFUSED)
def test_other_files_are_refused_in_a_line(text, tmp_path):
    (tmp_path / "order").write_text(text)
    with pytest.raises(InputError, match="data.class_order is") as refused:
        read_class_order(tmp_path / "order")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x9f")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(InputError, match="cannot be read"):
            read_class_order(path)


@pytest.mark.parametrize(
    ("names", "order", "outputs"),
    [
        ("abc", "abc", None),
        ("abc", "cab", [1, 2, 0]),
        ("ca", "abcd", [2, 0]),
        ("", "abc", None),
        (["n03", "n01"], "imagenet", [2, 0]),
        (["great white shark", "tench"], "imagenet", [3, 0]),
        (["apple", "apple tree"], ["apple tree", "apple"], [1, 0]),
    ],
)
def test_labels_follow_names(names, order, outputs, tmp_path):
    (tmp_path / "order").write_text(json.dumps(INDEX) if order == "imagenet" else "\n".join(order))
    read = read_class_order(tmp_path / "order")
    matched = match_classes(list(names), read, "data")
    assert matched.outputs == outputs and len(matched.names) == len(read)
    for label, output in enumerate(outputs or ()):
        assert matched.names[output] == names[label] and matched.note and "\n" not in matched.note


@pytest.mark.parametrize("names", [["a", "z"], ["crane", "tench"], ["n01", "tench"], ["a", "b", "c", "d", "e"]])
def test_other_classes_are_refused_and_can_be_ignored(names):
    order = [(*INDEX[key], letter) for key, letter in zip(INDEX, "abcd", strict=True)]
    with pytest.raises(InputError, match="data.class_names=ignore") as refused:
        match_classes(names, order, "data")
    assert "\n" not in str(refused.value)
    assert match_classes(names, order, "data", ignore=True).outputs is None


def test_integers_in_another_order_are_a_warning():
    folders = sorted(map(str, range(12)))
    line, is_warning = third_party_classes(folders)
    assert is_warning and "2 = '10'" in line
    line, is_warning = third_party_classes(["class_1", "class_10", "class_2"])
    assert is_warning and "numbered, but not in numeric order" in line
    for names in (
        ["0", "1", "2"],
        ["00", "01", "10"],
        ["a", "10", "2"],
        ["a1", "b0"],
        ["c1", "c2", "c10"],
        ["1a", "2"],
    ):
        assert third_party_classes(names)[1] is False


def test_accents_that_are_letters_of_their_own_are_the_same_name():
    """As macOS writes the names of folders."""
    order = read_class_order(["b", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"])
    assert match_classes(["cafe\N{COMBINING ACUTE ACCENT}", "b"], order, "the folder").outputs == [1, 0]


def folder(root: Path, names: str, gray: dict[str, int]) -> Path:
    """Write two images per class, all of one gray value, so that the value identifies the class."""
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((4, 4), gray[name], np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("names", "order"), [("abc", "cab"), ("ac", "dcba")])
def test_images_of_a_folder_get_the_labels_of_the_order(names, order, in_memory, tmp_path):
    gray = {name: 50 * (order.index(name) + 1) for name in order}
    data = ImageFolder(root=folder(tmp_path, names, gray), in_memory=in_memory, validation_images=0.5)
    data.set_class_order(list(order))
    description = data.describe()
    assert description.class_names == tuple(order) and description.classes == len(order)
    data.setup()
    for images in (data.training_set, data.validation_set, data.test_set, data.test_set.subset(torch.tensor([1, 2]))):
        for index in range(len(images)):
            image, label = images[index]
            assert int(label) == int(images.labels[index]) == round(image.max().item() * 255) // 50 - 1
    assert sorted(set(data.test_set.labels.tolist())) == sorted(order.index(name) for name in names)
    for _, labels in data.test_batches(torch.tensor([0, 3])):
        assert labels.tolist() == data.test_set.labels[[0, 3]].tolist()


def test_names_that_are_ignored_leave_the_labels(tmp_path):
    gray = dict.fromkeys("xyz", 9)
    data = ImageFolder(root=folder(tmp_path, "xyz", gray))
    data.set_class_order(["a", "b", "c", "d"])
    with pytest.raises(InputError, match="has the class 'x', which is none"):
        data.describe()
    data.set_class_order(["a", "b", "c", "d"], ignore=True)
    assert data.describe().classes == 4
    data.setup("test")
    assert data.test_set.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for source in (3, {"a": 0}, [1, 2], ["a"], []):
        with pytest.raises(InputError, match="which names no 2 classes"):
            data.set_class_order(source)


class Other(torch.utils.data.Dataset):
    """A dataset of a user's own kind."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.full((1, 2, 2), self.labels[index] / 4), int(self.labels[index])

    def subset(self, indices):
        return Other(self.labels[indices])


@pytest.mark.parametrize(
    "kind", [Other, lambda labels: TensorImages(labels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 4, labels)]
)
def test_any_dataset_of_a_subclass_is_relabeled_and_left_as_it_was(kind):
    own = kind(torch.tensor([0, 1, 1, 0]))

    class Mine(ImageData):
        class_names = ("no", "yes")

        def load(self, split):
            return own

    data = Mine(channels=1, image_size=2, classes=2, mean=[0.5], std=[0.5])
    data.set_class_order(["yes", "no"])
    data.describe()
    data.setup("test")
    assert data.test_set.labels.tolist() == [1, 0, 0, 1] and own.labels.tolist() == [0, 1, 1, 0]
    assert [int(data.test_set.subset(torch.tensor([0, 2]))[index][1]) for index in range(2)] == [1, 0]
