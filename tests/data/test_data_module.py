"""Settings, splits and loaders of every data set, and how Lightning treats the loaders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from nsr.data import DataDescription, EvaluationBatches, ImageData, TensorImages, TrainingBatches
from nsr.errors import InputError

SETTINGS = dict(channels=1, image_size=2, classes=3, mean=[0.5], std=[0.5], batch_size=4, validation_images=6)


class Made(ImageData):
    """30 images to train on and 12 to test; the pixel of each image is its number."""

    def load(self, split):
        self.loaded = [*getattr(self, "loaded", []), split]
        count = {"train": 30, "validation": 9, "test": 12}[split]
        images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
        return TensorImages(images, torch.arange(3).repeat(count // 3))


class Slow(Dataset):
    """The same, but image by image."""

    def __init__(self, images):
        self.images, self.labels = images, images.labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def subset(self, indices):
        return Slow(self.images.subset(indices))


class MadeSlow(Made):
    def load(self, split):
        return Slow(super().load(split))


def made(kind=Made, **changes):
    return kind(**{**SETTINGS, **changes})


def numbers(images):
    return [round(float(image.flatten()[0]) * 255) for image in images]


def test_the_split_is_stratified_and_depends_on_split_seed_alone():
    def held_out(**changes):
        data = made(**changes)
        data.setup("validate")
        assert data.validation_set.labels.bincount().tolist() == [2, 2, 2]
        parts = [numbers(part.images / 255) for part in (data.training_set, data.validation_set)]
        assert sorted(parts[0] + parts[1]) == list(range(30))
        return parts[1]

    assert held_out() == held_out(seed=7, batch_size=9, augmentation="crop_flip", validation_images=0.2)
    assert held_out() != held_out(split_seed=1)


def test_validation_images_of_their_own_replace_those_held_out():
    class Validated(Made):
        has_validation = True

    data = made(Validated)
    data.setup("fit")
    assert (len(data.training_set), len(data.validation_set), data.loaded) == (30, 9, ["train", "validation"])


@pytest.mark.parametrize(
    ("stage", "loaded"), [("fit", ["train"]), ("validate", ["train"]), ("test", ["test"]), (None, ["train", "test"])]
)
def test_only_what_a_stage_needs_is_loaded_and_only_once(stage, loaded):
    data = made()
    data.setup(stage)
    data.setup(stage)
    assert data.loaded == loaded


@pytest.mark.parametrize("kind", [Made, MadeSlow])
def test_loaders(kind):
    data = made(kind, evaluation_batch_size=5)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 1, 2, 2) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert [len(labels) for _, labels in data.val_dataloader()] == [5, 1]
    seen = [number for images, _ in data.test_dataloader() for number in numbers(images)]
    assert seen == list(range(12))


def test_ranks_share_the_batches():
    data = made(evaluation_batch_size=5, batch_size=8)  # of both together
    data.setup()
    seen = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        assert len(data.train_dataloader()) == 3
        seen += [number for images, _ in data.train_dataloader() for number in numbers(images)]
        assert len(data.test_dataloader()) == 2
    assert len(set(seen)) == 24


def test_describe():
    described = DataDescription(1, 2, 3, mean=(0.25,), std=(0.5,), class_names=("0", "1", "2"))
    assert made(mean=[0.25]).describe() == described


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": None}, "data.channels is None; it must be a whole number at least 1"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"classes": 1}, "data.classes is 1; it must be a whole number at least 2"),
        ({"mean": None}, "data.mean is None; it must be a list"),
        ({"mean": [0.5, 0.5]}, "data.mean has 2 numbers; it must have 1"),
        ({"mean": [125.0]}, "data.mean is 125.0; .* pixels are in "),
        ({"std": [0.0]}, "data.std is 0.0; it must be a number above 0"),
        ({"batch_size": 2.5}, "data.batch_size is 2.5; it must be a whole number"),
        ({"evaluation_batch_size": -1}, "data.evaluation_batch_size is -1"),
        ({"validation_images": 0.0}, "data.validation_images is 0.0"),
        ({"validation_images": 1.5}, "data.validation_images is 1.5; .* a float is a fraction"),
        ({"validation_images": True}, "data.validation_images is True"),
        ({"split_seed": -1}, "data.split_seed is -1"),
        ({"seed": -1}, "data.seed is -1"),
        ({"augmentation": "flip"}, "data.augmentation is 'flip'"),
        ({"num_workers": 1000}, "data.num_workers is 1000; .* at most .*; this machine has .* CPUs"),
        ({"image_size": 200_000}, "a batch of 250 images of data.image_size=200000 takes 40,000 GB; it must fit in"),
        ({"num_workers": -1}, "data.num_workers is -1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_images": 28}, "asks for 28 of 30 images in 3 classes; it must be from 1 to 27"),
        ({"validation_images": 1.0}, "asks for 30 of 30"),
        ({"classes": 2}, "labels go from 0 to 2; they must be from 0 to 1"),
        ({"image_size": 4}, r"images of Made have shape \(1, 2, 2\), but .* make it \(1, 4, 4\)"),
    ],
)
def test_settings_that_do_not_fit_the_images(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes).setup("fit")


def test_one_class_is_no_classifier():
    class OneClass(Made):
        def load(self, split):
            return TensorImages(torch.zeros(9, 1, 2, 2), torch.zeros(9, dtype=torch.int64))

    with pytest.raises(InputError, match="OneClass are all of one class"):
        made(OneClass).setup("fit")


class Recorder(pl.LightningModule):
    """Record which images each epoch trains on and in which order."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.orders, self.validated, self.loaders = {}, [], []

    def training_step(self, batch, batch_idx):
        self.orders.setdefault(self.current_epoch, []).append(numbers(batch[0]))
        return self.layer(batch[0][:, 0, 0, :1]).sum()

    def on_validation_start(self):
        self.validated = []

    def validation_step(self, batch, batch_idx):
        self.validated += numbers(batch[0])

    def on_train_epoch_end(self):
        self.loaders = [self.trainer.train_dataloader, self.trainer.val_dataloaders]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data, folder, epochs, checkpoint=None, **settings):
    net = Recorder()
    quiet = dict.fromkeys(("logger", "use_distributed_sampler", "enable_progress_bar", "enable_model_summary"), False)
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **settings)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[keep], **quiet)
    trainer.fit(net, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return net


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("save_on_train_epoch_end", [True, False])
def test_lightning_keeps_our_batches_and_resuming_repeats_the_order(tmp_path, num_workers, save_on_train_epoch_end):
    settings = {"save_on_train_epoch_end": save_on_train_epoch_end}
    net = fit(made(num_workers=num_workers), tmp_path, 3, **settings)
    training, validation = net.loaders
    assert isinstance(training.batch_sampler, TrainingBatches)
    assert isinstance(validation.batch_sampler, EvaluationBatches)
    data = made()
    data.setup("fit")
    assert net.validated == numbers(data.validation_set.images / 255)
    for epoch in range(3):
        batches = TrainingBatches(24, 4, seed=0)
        batches.set_epoch(epoch)
        assert net.orders[epoch] == [numbers(data.training_set.images[batch] / 255) for batch in batches]
    resumed = fit(made(num_workers=num_workers), tmp_path, 3, tmp_path / "epoch=0.ckpt", **settings)
    assert resumed.orders == {epoch: net.orders[epoch] for epoch in (1, 2)}
