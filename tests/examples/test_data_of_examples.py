"""examples/huggingface and webdataset: the batches of the same images in a folder, of webdataset's own reader."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.app.folders import with_folder
from nsr.errors import InputError
from tests.conftest import TINY, image_folder, made, read_json, refusal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of datasets and webdataset
SMALL = ("data.batch_size=4", "data.validation_images=4", *TINY)


def data_of(*overrides: str):
    """Return the data module of a command, ready for training and test."""
    data = made("train", *with_folder([*SMALL, *overrides], "conf")).data
    data.setup()
    return data


def assert_same_batches(one, two) -> None:
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        pairs = list(zip(getattr(one, loader)(), getattr(two, loader)(), strict=True))
        assert pairs
        for (images, labels), (others, theirs) in pairs:
            assert torch.equal(images, others)
            assert torch.equal(labels, theirs)


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def hf(example, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return example("huggingface", "hf_images")


def saved(root: Path, to: Path, *, names: bool) -> Path:
    """The images of a folder as a saved set with columns of other names; the labels as texts or as classes."""
    import datasets

    splits = {}
    for split in ("train", "test"):
        files = sorted((root / split).rglob("*.png"))
        columns = {
            "picture": [str(file) for file in files],
            "animal": [file.parent.name for file in files],
            "id": range(len(files)),
        }
        label = datasets.Value("string") if names else datasets.ClassLabel(names=["cat", "dog"])
        kinds = datasets.Features(picture=datasets.Image(), animal=label, id=datasets.Value("int64"))
        splits[split] = datasets.Dataset.from_dict(columns, features=kinds)
    datasets.DatasetDict(splits).save_to_disk(to)
    return to


@pytest.mark.parametrize("form", ["folder", "classes", "texts"])
def test_hugging_face_gives_the_batches_of_the_folder(form, hf, tmp_path):
    root = image_folder(tmp_path / "images", images=8)
    path, columns = root, ()
    if form != "folder":
        path = saved(root, tmp_path / "saved", names=form == "texts")
        columns = ("data.label_column=animal",) if form == "texts" else ()
    expected = data_of("data=image_folder", f"data.root={root}", "data.augmentation=none")
    found = data_of("data=huggingface", f"data.path={path}", f"data.cache_dir={tmp_path / 'cache'}", *columns)
    assert found.describe() == expected.describe()
    assert found.describe().class_names == ("cat", "dog")
    assert_same_batches(found, expected)


def test_columns_that_are_not_there_or_not_unique_are_one_line(hf, tmp_path):
    path = saved(image_folder(tmp_path / "images"), tmp_path / "saved", names=True)
    assert "no column may be the label; set data.label_column" in refusal(
        data_of, "data=huggingface", f"data.path={path}"
    )
    said = refusal(data_of, "data=huggingface", f"data.path={path}", "data.label_column=kind")
    assert "has no column 'kind'; it has picture, animal, id" in said
    assert "nowhere" in refusal(data_of, "data=huggingface", "data.path=nowhere/at_all")


# ---------------------------------------------------------------- webdataset


def write_shards(folder: Path, *, samples: int = 12, shards: int = 3) -> Path:
    """Shards of webdataset's own writer: random images in PNG, classes 0 and 1."""
    wds = pytest.importorskip("webdataset")
    folder.mkdir()
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        with wds.ShardWriter(str(folder / f"{split}-%03d.tar"), maxcount=samples // shards, verbose=0) as sink:
            for number in range(samples):
                file = io.BytesIO()
                Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "png")
                sink.write(
                    {"__key__": f"{number:05d}", "png": file.getvalue(), "cls": number % 2, "json": {"n": number}}
                )
    return folder


def of_shards(folder: Path, *overrides: str):
    patterns = (f"data.shards='{folder}/train-*.tar'", f"data.test_shards='{folder}/test-*.tar'")
    return data_of("data=webdataset", *patterns, *overrides)


@pytest.fixture
def shards(example, tmp_path) -> Path:
    folder = write_shards(tmp_path / "shards")
    example("webdataset", "tar_images")
    return folder


def test_the_images_are_those_of_webdatasets_own_reader_in_its_order(shards, example):
    import webdataset

    tar_images = example("webdataset", "tar_images")
    reader = webdataset.WebDataset(str(shards / "train-{000..002}.tar"), shardshuffle=False)
    expected = list(reader.decode("pil").to_tuple("png", "cls"))
    for pattern in ("train-*.tar", "train-{000..002}.tar"):
        found = tar_images.TarImages(str(shards / pattern))
        assert len(found) == len(expected) == 12
        for (image, label), (other, theirs) in zip(found, expected, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(other))
            assert label == theirs


def test_any_number_of_workers_and_processes_sees_the_same_batches_and_a_run_resumes_inside_an_epoch(
    shards, monkeypatch
):
    in_memory = of_shards(shards, "data.num_workers=0")
    monkeypatch.setattr("nsr.data.datasets.MEMORY_LIMIT_BYTES", 0)  # as a set that fits no memory
    lazy = of_shards(shards, "data.num_workers=2")
    assert_same_batches(lazy, in_memory)
    whole = [images for images, _ in in_memory.train_dataloader()]
    parts = []
    for rank in range(2):
        lazy.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        parts.append([images for images, _ in lazy.train_dataloader()])
    assert all(torch.equal(torch.cat(pair), batch) for pair, batch in zip(zip(*parts, strict=True), whole, strict=True))
    lazy.trainer = None
    loader = lazy.train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 1})
    assert all(torch.equal(images, batch) for (images, _), batch in zip(loader, whole[1:], strict=True))


@pytest.mark.parametrize("cut", [700, 2048])
def test_a_damaged_shard_is_named_and_left_out_only_where_asked(cut, shards, caplog):
    path = shards / "train-001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    said = refusal(of_shards, shards)
    assert f"the shard {path} cannot be read" in said and "data.skip_damaged=true" in said
    data = of_shards(shards, "data.skip_damaged=true")
    assert len(data.training_set) + len(data.validation_set) == 8
    assert f"the shard {path} is left out" in caplog.text


def test_what_is_no_shard_is_one_line(shards, tmp_path):
    assert "other/train-*.tar cannot be read" in refusal(of_shards, tmp_path / "other")
    assert "cannot be read" in refusal(of_shards, tmp_path / "other", "data.skip_damaged=true")
    import webdataset

    with webdataset.TarWriter(str(shards / "train-003.tar")) as sink:
        sink.write({"__key__": "a", "png": b"no image", "txt": "a label"})
    assert "the sample a of" in refusal(of_shards, shards)
    with webdataset.TarWriter(str(shards / "train-003.tar")) as sink:
        sink.write({"__key__": "a", "png": b"no image", "cls": 1})
    with pytest.raises(InputError, match=r"train-003\.tar, byte \d+"):
        of_shards(shards)


def test_a_run_on_shards(shards, trained_example):
    patterns = (f"data.shards='{shards}/train-*.tar'", "data.test_images=4")
    run = trained_example("data=webdataset", *patterns, *SMALL)
    results = read_json(run / "metrics.json")
    assert results["test/clean_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
