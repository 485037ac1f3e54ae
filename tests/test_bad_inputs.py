"""Wrong commands and files, group by group: each is answered in one line that names what is wrong, nothing is made.

`refused` checks the exit code, the one line and that nothing was made; tests/test_command_line.py has further commands.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import image_folder, made

MODULE = """
import torch
from torch import nn

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("first line\\nsecond line")

class NotFinite(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 10))
    def forward(self, images):
        return self.body(images) * float("nan")

class Detached(NotFinite):
    def forward(self, images):
        return self.body(images.detach())

class Writes(NotFinite):
    def forward(self, images):
        return self.body(images.sub_(0.5))

class Frozen(NotFinite):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
    def forward(self, images):
        return self.body(images)

class Few(NotFinite):
    def forward(self, images):
        return self.body(images)[:, :7]

class Mean(NotFinite):
    def forward(self, images):
        return self.body(images).mean(0)

def of_vectors(clean_logits, labels): return clean_logits
def of_nothing(clean_logits, labels): return None
def detached(clean_logits, labels): return clean_logits.detach().sum()
def unknown_input(foo): return foo
def crops(net, images, labels): return images[:1]
def forgets(net, images, labels): return None
def black(net, images, labels): return images * 0
def no_data(): return None
def fails(): raise RuntimeError("first line\\nsecond line")
def numbers(): return {"train": [1, 2, 3], "test": [4]}
"""
EXPERIMENTS = {
    "flow": "a: [1\n b: }",
    "list": "- 1\n- 2\n",
    "no_package": "optimizer:\n  lr: 0.1\n",
    "itself": "# @package _global_\ndefaults: [itself]\n",
    "unknown": "# @package _global_\nseed: ${nothing}\n",
    "twice": "# @package _global_\nseed: 1\nseed: 2\n",
    "tab": "# @package _global_\nseed:\t1\n\tname: x\n",
    "resolver": "# @package _global_\nseed: ${foo:1}\n",
}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The folder that commands are given in, with files that are wrong in some way."""
    (tmp_path / "wrong_module.py").write_text(MODULE)
    (tmp_path / "no_python.py").write_text("def f(:\n  pass\n")
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    for name, content in EXPERIMENTS.items():
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name in ("latin.yaml", "experiment/latin.yaml"):
        (tmp_path / "conf" / name).write_bytes("# @package _global_\nname: caf\u00e9\n".encode("latin-1"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.yaml").write_text("a: [")
    for name, saved in {"number": {"a": 1}, "list": [1, 2], "nothing": {}, "tensor": torch.zeros(3)}.items():
        torch.save(saved, tmp_path / f"{name}.pt")
    (tmp_path / "order.json").write_text('{"a": [}')
    (tmp_path / "order.txt").write_text("cat\ncat\n")
    image_folder(tmp_path / "images")
    arrays(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def arrays(folder: Path) -> None:
    """Write NAME.npz, each wrong in one array."""
    draws = np.random.default_rng(0)
    images = {"x_train": draws.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)}
    images["x_test"] = images["x_train"][:20]
    labels = {"y_train": np.arange(40) % 2, "y_test": np.arange(20) % 2}
    wrong = {
        "shorter": {"y_train": labels["y_train"][:39]},
        "flat": {"x_train": images["x_train"][:, :, 0, 0]},
        "tall": {"x_train": images["x_train"][:, :, :4]},
        "large": {"x_train": images["x_train"].astype(np.float32)},
        "int16": {"x_train": images["x_train"].astype(np.int16)},
        "negative": {"y_train": labels["y_train"] - 1},
        "halves": {"y_train": labels["y_train"] + 0.5},
        "names": {"y_train": np.array(["cat", "dog"] * 20)},
        "one": {"y_train": np.zeros(40, dtype=int), "y_test": np.zeros(20, dtype=int)},
        "more": {"y_test": np.arange(20) % 5},
        "none": {"x_train": images["x_train"][:0], "y_train": labels["y_train"][:0]},
    }
    for name, arrays in wrong.items():
        np.savez(folder / f"{name}.npz", **{**images, **labels, **arrays})


NPZ, FOLDER = "data=custom data._target_=nsr.data.npz +data.path=", "data=image_folder data.root=images"
OWN, MODEL = "objective=null +train_attack=pgd +objective._target_=wrong_module", "model=custom model._target_"
ATTACK, EXPERIMENT = "+test_attacks.x._target_=wrong_module", "--config-dir conf experiment"
OPTUNA = "-m sweep=optuna optimizer.lr=interval(0.001,0.01)"
QUICK = [
    ("seed=0,1", "seed=0,1 has several values; give -m too, for a run of each, or a list"),
    ("data=[digits,cifar10]", "data takes one choice, data=NAME"),
    (f"{EXPERIMENT}=flow", "flow.yaml"),
    ("callbacks=[early_stopping] callbacks.early_stopping.monitor=nope", "it must be one of validation/clean_accuracy"),
    ("test_attacks=null", "test_attacks is []; it must name what is tested"),
]
ROWS = [
    # data
    ("data=digits data.channels=3", "data.mean has 1 numbers; it must have 3"),
    ("data=digits data.channels=0", "data.channels is 0; it must be a whole number at least 1"),
    ("data=digits data.image_size=16", "shape (1, 8, 8), but data.channels and data.image_size make it (1, 16, 16)"),
    ("data=digits data.image_size=[8,8]", "data.image_size is [8, 8]; it must be a whole number"),
    ("data=digits data.classes=7", "data.classes is 7, but Digits has 10 classes; leave data.classes out"),
    ("data=digits data.classes=100", "data.classes is 100, but Digits has 10 classes"),
    ("data.mean=3", "data.mean is 3; it must be a list of numbers, one per channel"),
    ("data.std=[0]", "data.std is 0; it must be a number above 0 and at most 1"),
    ("data.epsilon=[0.1]", "Error merging override data.epsilon=[0.1]: Cannot merge DictConfig with ListConfig"),
    ("data.batch_size=1.5", "data.batch_size is 1.5; it must be a whole number at least 1"),
    ("data.evaluation_batch_size=1e9", "data.evaluation_batch_size is 1000000000.0; it must be a whole number"),
    ("data.validation_images=1297", "asks for 1297 of 1297 images in 10 classes; it must be from 1 to 1287"),
    ("data.validation_images=1.0", "asks for 1297 of 1297 images in 10 classes"),
    ("data.split_seed=-1", "data.split_seed is -1; it must be a whole number at least 0"),
    ("data.augmentation=flip", "data.augmentation is 'flip'; it must be one of none, crop_flip"),
    ("data.num_workers=1.5", "data.num_workers is 1.5; it must be a whole number"),
    ("+data.nope=1", "data.nope is not an argument of nsr.data.sources.Digits; it takes channels, image_size"),
    ("data=cifar10 data.root=null", "data.root is None; it must be the folder for data sets"),
    ("data=cifar10 data.root=empty data.download=false", "CIFAR10 is not in "),
    ("data=image_folder data.root=empty", "empty, which has neither train nor test"),
    ("data=image_folder data.root=text", "text, which is not a folder"),
    (f"{FOLDER} data.validation_images=12", "asks for 12 of 12 images in 2 classes; it must be from 1 to 10"),
    (f"{FOLDER} data.in_memory=maybe", "data.in_memory is 'maybe'; it must be one of"),
    (f"{FOLDER} data.channels=2", "data.channels is 2; it must be one of"),
    (
        f"{FOLDER} data.class_order=order.json",
        "order.json', which names no 2 classes; it must have a class name a line",
    ),
    (f"{FOLDER} data.class_order=order.txt", "the class 'cat', which is outputs 0, 1 of the network's classes"),
    (f"{FOLDER} data.class_order=nowhere", "data.class_order is 'nowhere', which cannot be read"),
    (f"{NPZ}shorter.npz", "images have shape (40, 3, 8, 8) and labels (39,); they must be"),
    (f"{NPZ}flat.npz", "images have shape (40, 8); they must be (image, size, size)"),
    (f"{NPZ}tall.npz", "images have shape (40, 8, 4, 3); they must be (image, size, size)"),
    (f"{NPZ}large.npz", "they must be in [0, 1]; scale them"),
    (f"{NPZ}int16.npz", "pixels are int16; they must be uint8, or floating point in [0, 1]"),
    (f"{NPZ}negative.npz", "labels go from -1 to 0; they must be at least 0"),
    (f"{NPZ}halves.npz", "labels are float64; they must be whole numbers from 0"),
    (f"{NPZ}names.npz", "y_train in names.npz has the type"),
    (f"{NPZ}one.npz", "data.classes is 1; it must be a whole number at least 2"),
    (f"{NPZ}more.npz", "labels go from 0 to 4; they must be from 0 to 1"),
    (f"{NPZ}none.npz", "images have shape (0, 3, 8, 8)"),
    (f"{NPZ}text", "text cannot be read (File is not a zip file)"),
    (f"{NPZ}nowhere.npz", "nowhere.npz is not there; it must be a .npz file"),
    ("data=custom data._target_=wrong_module.no_data", "no_data returns NoneType; it must be {'train': dataset"),
    ("data=custom data._target_=wrong_module.fails", "fails failed: RuntimeError: first line second line"),
    ("data=custom data._target_=wrong_module.numbers", "item 0: it is int; it must be (image, label)"),
    ("data=custom data._target_=ends.f", "data._target_ is ends.f; it must be importable"),
    # model
    ("model.width=x", "width is 'x'; it must be a whole number at least 1"),
    ("model=resnet20 model.variant=x", "variant is 'x'; it must be one of published, projection_bias"),
    ("model=torchvision", "model.name is missing; give it on the command line"),
    ("model=torchvision model.name=nope", "torchvision has no image classifier of that name"),
    ("model=torchvision model.name=resnet18", "takes images of 3 channels, but data.channels is 1"),
    ("model=timm model.name=hf-hub:a/b", "which looks in a hub or a folder: refused"),
    ("model.normalization=foo", "model.normalization is 'foo'; it must be one of"),
    ("model.weights=text", "'text' is cut short or no checkpoint that torch.save wrote"),
    ("model.weights=empty", "cannot open 'empty': Is a directory"),
    ("model.weights=number.pt", "holds no state_dict, a mapping of names to tensors, but a mapping with the keys 'a'"),
    ("model.weights=list.pt", "but an object of type list"),
    ("model.weights=nothing.pt", "but an empty mapping"),
    ("model.weights=tensor.pt", "but an object of type Tensor"),
    ("model.weights_prefix=ema", "model.weights_prefix is 'ema', but model.weights is not given"),
    (f"{MODEL}=wrong_module.Fails", "Fails failed: ValueError: first line second line"),
    (f"{MODEL}=wrong_module.NotFinite", "logits of image 0 of the batch hold nan; they must be finite"),
    (f"{MODEL}=wrong_module.Few", "the network gives 7 logits per image; the data have 10 classes"),
    (f"{MODEL}=wrong_module.Detached", "validation_attack: the gradient of the logits in the images"),
    (f"{MODEL}=wrong_module.Writes model.normalization=none", "a differentiable pass that leaves its input as it is"),
    (f"{MODEL}=wrong_module.Frozen", "the loss has no gradient in any weight of Frozen"),
    (f"{MODEL}=wrong_module.Mean", "the network's output is of shape (10,); it must be logits (2, class)"),
    (f"{MODEL}=no_python.f", "it must be importable"),
    # objective
    ("objective=[pgd,trades]", "objective takes one choice, objective=NAME"),
    ("objective.label_smoothing=-0.1", "objective.label_smoothing is -0.1; it must be a number at least 0"),
    ("objective=trades objective.beta=inf", "objective.beta is inf; it must be a number at least 0"),
    ("objective=free objective.replays=0", "objective.replays is 0; it must be a whole number at least 1"),
    ("objective=pgd train_attack=null", "error: train_attack is None, but the objective or the stabilizer takes"),
    (f"{OWN}.of_vectors", "shape (2, 10); it must be a scalar float tensor"),
    (f"{OWN}.of_nothing", "returned None; it must return a scalar tensor"),
    (f"{OWN}.detached", "carry no gradient; they must not be detached"),
    (f"{OWN}.unknown_input", "has the input 'foo'; it must be one of clean_logits"),
    # attacks
    ("objective=ensemble_adversarial train_attack.checkpoints=3", "train_attack.checkpoints is 3; it must be a list"),
    ("objective=ensemble_adversarial train_attack.checkpoints=text", "checkpoints is 'text'; it must be a list"),
    ("objective=ensemble_adversarial train_attack.checkpoints=[text]", "'text' is cut short or no checkpoint"),
    (
        "train_attack._target_=wrong_module.crops",
        "crops; it takes net, images, labels; train_attack=null leaves",
    ),
    ("+objective.clean_wait=1", "AdversarialTraining (did you mean 'clean_weight'?); it takes"),
    ("+optimizer.lrr=1", "optimizer.lrr is not an argument of torch.optim.Adam"),
    ("scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "last_epoch; scheduler=null leaves out those of the"),
    (
        "+callbacks.x._target_=nsr.callbacks.Freeze +callbacks.x.part=[a]",
        "(did you mean 'parts'?); it takes parts",
    ),
    ("train_attack.step_size=-1", "step_size is -1; it must be a number at least 0"),
    ("train_attack.random_start=maybe", "random_start is 'maybe'; it must be one of True, False, gaussian"),
    ("train_attack.loss=foo", "loss is 'foo'; it must be one of"),
    ("norm=l2 epsilon=100", "epsilon is 100; it must be a number at least 0 and at most 8"),
    ("norm=l1 epsilon=65", "epsilon is 65; it must be a number at least 0 and at most 64"),
    ("validation_attack=null", "validation_attack is missing; it must be a choice"),
    (f"{ATTACK}.crops", "the attack crops returned shape (1, 1, 8, 8); it must return images (2, 1, 8, 8)"),
    (f"{ATTACK}.forgets", "the attack forgets returned a NoneType"),
    (f"{ATTACK}.black", "returned images up to 0.5 from the originals; epsilon is 0.15"),
    ("test_attacks=[adaptive] test_attacks.adaptive.layers=[nope]", "test_attacks.adaptive: no layer matches 'nope'"),
    ("test_attacks=[curve] test_attacks.curve.attack=null", "test_attacks.curve.attack is None; it must be"),
    ("test_attacks=clean,pgd", "test_attacks=clean,pgd has several values"),
    # stabilizer, optimizer, scheduler, callbacks
    ("stabilizer.select=foo", "stabilizer.select is 'foo'; it must be one of most_sensitive"),
    ("stabilizer.select=attribution stabilizer.refresh=epoch", "which selects by the reported sensitivities; set"),
    ("stabilizer.select=attribution compile=true", "or take another stabilizer.select than attribution"),
    ("stabilizer.layers=[nope]", "stabilizer.layers has 'nope', which matches no hooked layer; hooked are relu1"),
    ("optimizer=sgd optimizer.momentum=2", "optimizer.momentum is 2; it must be a number at least 0 and at most 1"),
    ("+optimizer.betas=[2,2]", "the optimizer failed in a trial (ValueError: Invalid beta parameter"),
    ("+scheduler.eta_min=x", "scheduler.eta_min is 'x'; it must be a number at least 0"),
    ("scheduler=one_cycle scheduler.total_steps=9", "scheduler.total_steps is 9; it must be one of None"),
    ("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "scheduler.T_max is not an argument of"),
    (
        "scheduler=null +scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "scheduler.mode is 'min'",
    ),
    ("callbacks=[early_stopping] callbacks.early_stopping.mode=min", "callbacks.early_stopping.mode is 'min'"),
    ("callbacks=[early_stopping] +callbacks.early_stopping.min_delta=x", "min_delta is 'x'; it must be a number"),
    ("callbacks=[ema] callbacks.ema.decay=2", "callbacks.ema.decay is 2; it must be a number at least 0 and at most 1"),
    ("+callbacks.x._target_=pytorch_lightning.callbacks.LearningRateFinder", "it tries values on the run itself"),
    ("+callbacks.x={}", "callbacks.x is {}; it must have a _target_, or be null"),
    # logger, trainer
    ("+logger.wandb.entity=x", "logger.wandb.entity is not an argument of nsr.loggers.wandb.wandb_logger; it takes"),
    ("+trainer.max_steps=0", "trainer.max_steps is 0; it must be a whole number at least 1; or -1"),
    ("+trainer.min_epochs=x", "trainer.min_epochs is 'x'; it must be a whole number at least 1"),
    ("trainer.strategy=ddp_spawn", "it copies the objects of a run to its processes; give trainer=ddp"),
    ("+trainer.detect_anomaly=x", "trainer.detect_anomaly is 'x'; it must be one of True, False"),
    ("+trainer.num_nodes=2", "trainer.num_nodes is 2; several machines are started by torchrun or srun"),
    ("+trainer.sync_batchnorm=true", "trainer.sync_batchnorm is True; it would replace layers that are hooked"),
    ("+trainer.profiler=3", "trainer.profiler is 3; it must be one of simple, advanced, pytorch"),
    ("trainer.max_time=00:00:01:00", "with a plus it goes to pytorch_lightning.Trainer: +trainer.max_time=..."),
    ("trainer.limit_test_batches=1", "with a plus it goes to pytorch_lightning.Trainer: +trainer.limit_test_batches"),
    ("optimizer._target_=torch.optim.SparseAdam ~optimizer.weight_decay", "does not support dense gradients"),
    ("optimizer.amsgrad=true", "with a plus it goes to torch.optim.Adam: +optimizer.amsgrad=..."),
    ("optimizer.foo=true", "optimizer.foo: there is no such setting"),
    ("+trainer.max_time=0", "trainer.max_time is 0; it must be a time above 0: 00:02:30:00, DD:HH:MM:SS"),
    ("+trainer.max_time=00:00:00:00", "trainer.max_time is '00:00:00:00'; it must be a time above 0"),
    ("+trainer.max_time={hours:-1}", "trainer.max_time is {'hours': -1}; it must be a time above 0"),
    ("+trainer.max_time={foo:1}", "trainer.max_time is {'foo': 1}; it must be a time above 0"),
    ("trainer.limit_train_batches=0.001", "which leaves none of 18 batches; an int is a count, a float a fraction"),
    ("+trainer.limit_val_batches=0.5", "trainer.limit_val_batches is 0.5, which leaves none of 1 batch"),
    ("+trainer.limit_test_batches=0.1", "trainer.limit_test_batches is 0.1, which leaves none of 2 batches"),
    ("+trainer.overfit_batches=0.0001", "trainer.overfit_batches is 0.0001, which leaves none of 18 batches"),
    ("+trainer.overfit_batches=x", "trainer.overfit_batches is 'x'; it must be a whole number at least 1"),
    ("+trainer.min_epochs=100", "trainer.min_epochs is 100; it must be at most trainer.max_epochs, which is 60"),
    ("+trainer.model_registry=x", "trainer.model_registry is 'x'; nsr's checkpoints are its own"),
    ("+trainer.enable_autolog_hparams=x", "trainer.enable_autolog_hparams is 'x'; it must be one of True, False"),
    ("+trainer.gradient_clip_algorithm=x", "trainer.gradient_clip_algorithm is 'x'; it must be one of norm, value"),
    (
        "scheduler=one_cycle scheduler.pct_start=0.5 trainer.limit_train_batches=1 trainer.max_epochs=2",
        "scheduler has a phase without a step in a run of 2 steps; train longer",
    ),
    # the module, resumption, the folder of the run, files of --config-dir, sweeps
    ("module._target_=nothing.Net", "all of them; +module._target_=... adds one"),
    ("+module._target_=nsr.RobustClassifier +module.foo=1", "unexpected keyword argument 'foo'"),
    ("name=null", "name is None; it must be a text of 1 to 255 characters"),
    ("resume=empty", "there is no run of train.py in "),
    ("resume=text", "there is no run of train.py in "),
    ("resume=damaged", "config.yaml is damaged"),
    ("hydra.run.dir=null", "hydra.run.dir=null: field 'hydra.run.dir' is not Optional"),
    ("hydra.run.dir=text/x", "it cannot be made: "),
    ("hydra.run.dir=/proc/x/y", "it cannot be made: "),
    ("-cn nope", "--config-name is 'nope'; there is no nope.yaml in conf/, the folder of --config-dir"),
    (f"{EXPERIMENT}=latin", "a file of the configuration is not UTF-8"),
    (f"{OPTUNA} hydra.sweeper.storage=foo", "hydra.sweeper.storage is 'foo'; it must be null, or a database"),
    (f"{OPTUNA} hydra.sweeper.storage=sqlite:////nowhere/x.db", "/nowhere/x.db cannot be written"),
    (f"{OPTUNA} hydra.sweeper.storage=sqlite:///text", "text is not an SQLite file"),
    (f"{OPTUNA} hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials is 0; it must be a whole number at least 1"),
    ("-m sweep=optuna optimizer.lr=interval(0.01,0.001)", "is empty; its first number must be below its second"),
    ("hydra.job.chdir=x", "hydra.job.chdir=x: Value 'x' is not a valid bool"),
    (f"{EXPERIMENT}=list", "a file of experiment/ begins with the line # @package _global_"),
    (f"{EXPERIMENT}=no_package", "a file of experiment/ begins with the line # @package _global_"),
    (f"{EXPERIMENT}=itself", "has itself among its defaults"),
    (f"{EXPERIMENT}=unknown", "Interpolation key 'nothing' not found"),
    (f"{EXPERIMENT}=twice", "found duplicate key seed"),
    (f"{EXPERIMENT}=tab", "that cannot start any token"),
    (f"{EXPERIMENT}=resolver", "Unsupported interpolation type foo"),
    ("-m seed=0,x", "seed is 'x'; it must be a whole number"),
    ("-m seed=range(0,0)", "seed=range(0,0) has no value; a sweep needs at least one"),
    ("-m seed=glob(*)", "a pattern is for choices, such as model=glob(resnet*)"),
    ("-m epsilon=interval(0,1)", "is an interval, from which Optuna alone draws: sweep=optuna"),
    ("-m hydra.sweep.dir=text seed=0,1", "it cannot be made: "),
    ("-m sweep=joblib seed=0,1 hydra.launcher.n_jobs=x", "Value 'x' of type 'str' could not be converted to Integer"),
]


@pytest.mark.parametrize(
    ("line", "message"), [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in ROWS)], ids=str
)
def test_a_wrong_command_is_answered_in_one_line(refused, files, line, message):
    text = refused("train", *line.split())
    assert text.startswith("error: ") and message in text
    assert "Traceback" not in text and text.rstrip("\n").isprintable()


@pytest.mark.slow
def test_names_that_a_terminal_would_obey_are_escaped(refused, files):
    for command in (
        ["seed=\x1b[31m"],
        ["objective=[bold]"],
        ["name=a\nb", "epsilon=x\ny"],
        ["layers=['\x1b]0;a\x07']"],
    ):
        assert refused("train", *command).rstrip("\n").isprintable()


def test_patterns_and_lists_of_choices_stay_allowed(files, monkeypatch):
    from nsr.app.composition import jobs, without_null

    assert jobs(["model=glob(resnet*)", "seed=0,1"], is_sweep=True) == [["seed=0"], ["seed=1"]]
    assert jobs(["callbacks=[awp,ema]"], is_sweep=False) == [["callbacks=[awp,ema]"]]
    assert without_null(["callbacks=null", "stabilizer=null", "seed=null"]) == [
        "callbacks=[]",
        "~stabilizer",
        "seed=null",
    ]


def test_there_are_a_hundred():
    assert len({line for line, _ in [*QUICK, *ROWS]}) >= 100


def test_layers_of_a_run_are_those_of_its_adaptive_attack():
    """They are named in the network, which the attack gets with its normalization in front."""
    module = made("train", "layers=[relu1]", "test_attacks=[adaptive]", "test_attacks.adaptive.steps=1").module
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
    attack = module.suite.attacks["adaptive"]
    assert not torch.equal(attack(module.net, images, labels, generator=torch.Generator().manual_seed(0)), images)
    assert attack.layers == ["net.relu1"]
