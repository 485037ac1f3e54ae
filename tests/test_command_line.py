"""What a user sees who mistypes: one line, a non-zero exit, nothing made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nsr.app import main
from nsr.app.command_line import check_command_line, one_line_errors
from nsr.app.resolvers import evaluation_directory
from nsr.errors import InputError, RunStopped
from nsr.evaluation.cache import ResultCache
from tests.conftest import image_folder, made, refusal, rows

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    return image_folder(tmp_path / "images")


# what is typed, and a part of the one line that answers it; nothing is made
TRAIN = [
    # parts left out, or of another kind
    ("data=null", "data is missing; it must be a choice such as data=NAME"),
    ("~data", "data is missing"),
    ("norm=null", "data.epsilon has none for norm=None; give a radius: epsilon=8/255"),
    ("~data.epsilon", "data.epsilon has none for norm=linf"),
    ("model=null", "model is missing; it must be a choice such as model=NAME"),
    ("objective=null", "objective is missing"),
    ("~optimizer", "optimizer is missing"),
    ("~norm", "norm is missing"),
    ("~test_attacks", "test_attacks"),
    ("~checks", "checks is missing"),
    ("trainer=3", "trainer=3: a choice is a name or a list of names"),
    ("test_attacks=[3]", "test_attacks=[3]: a choice is a name"),
    ("test_attacks=[[clean]]", "a choice is a name or a list of names"),
    ("test_attacks=[]", "test_attacks is []; it must name what is tested"),
    ("sweep_metrics=[]", "sweep_metrics is []"),
    ("+foo=3", "foo: there is no such setting"),
    ("limit_test=3", "limit_test: there is no such setting; `train.py --cfg job`"),  # nothing is close
    ("optimizer.lrr=3", "did you mean 'optimizer.lr'?"),
    ("objective=pdg", "did you mean 'pgd'?"),
    ("data.epsilom=1", "epsilo"),
    ("optimizer.lr", "the form is name=value"),
    # numbers
    ("optimizer.lr=-1", "optimizer.lr is -1; it must be a number above 0"),
    ("epsilon=-0.1", "epsilon is -0.1; it must be a number at least 0"),
    ("train_attack.steps=0", "train_attack.steps is 0; it must be a whole number at least 1"),
    ("train_attack.step_size=0", "step_size is 0; it must be above 0, or null: 2.5 * epsilon / steps"),
    ("train_attack.steps=true", "steps is True"),
    ("stabilizer.top=0", "stabilizer.top is 0"),
    ("stabilizer.batch_norm=frozn", "did you mean 'frozen'?"),
    ("stabilizer.distance=cosine", "a neuron of relu4 has one value"),
    ("objective.clean_weight=2", "objective.clean_weight is 2"),
    ("scheduler=piecewise scheduler.milestones=[5,3]", "scheduler.milestones is [5, 3]; it must rise"),
    ("data.validation_images=0", "data.validation_images is 0"),
    ("data.num_workers=5000", "data.num_workers is 5000"),
    ("data=cifar10 data.image_size=200000", "data.image_size=200000"),
    ("model.width=3000000", "it must fit in"),
    ("model.width=0", "width is 0"),
    # every flag of the Trainer works or is refused
    ("trainer.max_epochs={a:1}", "is {'a': 1}"),
    ("trainer.max_epochs=0", "trainer.max_epochs is 0"),
    ("+trainer.val_check_interval=0.5", "trainer.val_check_interval is 0.5"),
    ("+trainer.val_check_interval=1", "trainer.val_check_interval is 1; it must be 1.0"),  # a batch for Lightning
    ("+trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch is 2"),
    ("+trainer.fast_dev_run=true", "trainer.max_epochs=1 trainer.limit_train_batches=1"),
    ("+trainer.foo=1", "unexpected keyword argument 'foo'"),
    ("+trainer.max_time=never", "trainer.max_time is 'never'; it must be a time above 0"),
    ("+trainer.profiler=nothing", "profiler"),
    ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
    ("+trainer.limit_val_batches=0", "trainer.limit_val_batches is 0"),
    ("+trainer.logger=true", "trainer.logger is True; nsr sets it"),
    ("+trainer.accumulate_grad_batches=2 objective=free", "makes its own optimizer steps"),
    ("trainer.precision=8", "trainer.precision is 8; it must be one of 32-true"),
    ("trainer.devices=99", "trainer.devices is 99; there are"),
    ("trainer.accelerator=gpu", "trainer.accelerator is gpu; there is none"),
    # objects of the user's
    ("model=custom model._target_=nothing.Net", "model._target_ is nothing.Net; it must be importable"),
    ("model=custom model._target_=math.pi", "a float; it must be a class or a function"),
    ("model=custom model._target_=builtins.dict", "dict"),
    ("+model._partial_=true", "model._partial_ is true"),
    ("model=custom model._target_=tests.networks.Plain", "width"),
    ("data=custom data._target_=os.getcwd", "getcwd returns str"),
    ("data.augmentation={_target_: torch.nn.Flatten}", "data.augmentation"),
    ("data.augmentation=nothing", "data.augmentation is 'nothing'"),
    ("data.augmentation=cropshift", "strength of cropshift is 10 for images of 8 x 8 pixels"),
    ("data.augmentation=[cutmix] objective=mart", "objective takes class indices alone"),
    ("objective=null +objective._target_=math.sqrt +train_attack=pgd", "objective"),
    ("stabilizer=null +stabilizer._target_=math.floor", "the stabilizer failed in a trial"),
    ("optimizer=null +optimizer._target_=math.floor", "the optimizer failed in a trial"),
    ("+optimizer.foo=3", "foo"),
    ("+test_attacks.mine._target_=math.sqrt", "test_attacks.mine: the attack failed in a trial"),
    ("+metrics.x=3", "metrics.x is 3; it must have a _target_"),
    ("+metrics.x._target_=torch.nn.ReLU", "it must be a torchmetrics Metric"),
    ("+callbacks.x._target_=torch.nn.ReLU", "it must be a pytorch_lightning Callback"),
    ("+logger.x._target_=torch.nn.ReLU", "it must be a pytorch_lightning Logger"),
    ("module=3", "module is 3"),
    ("+module._target_=torch.nn.ReLU", "not a subclass of nsr.RobustClassifier"),
    ("+module._target_=nsr.RobustClassifier objective=free", "not a subclass of nsr.training.free.FreeClassifier"),
    # choices that have no meaning together
    ("callbacks=[stabilizer_ramp] stabilizer=none", "this run has none"),
    ("callbacks=[epsilon_ramp] callbacks.epsilon_ramp.start=100", "the ramp never starts"),
    ("callbacks=[awp] objective=free", "objective=free"),
    ("+trainer.gradient_clip_val=1 objective=free", "makes its own optimizer steps"),
    ("objective=mart objective.label_smoothing=0.1", "published form for soft labels: leave it at 0"),
    ("scheduler=warmup_piecewise scheduler.milestones=[]", "scheduler.milestones is []"),
    ("scheduler=warmup_cosine scheduler.warmup=60", "scheduler.warmup is 60, not shorter than the run of 60 epochs"),
    ("objective=trades train_attack=kept", "belong together"),
    ("objective=trades train_attack.random_start=false", "without random start"),
    ("objective=nfgsm train_attack.projection=true", "beyond the ball of radius"),
    ("train_attack.targeted=true", "train_attack: targeted is True, but the labels are the true classes"),
    ("validation_attack.targeted=true", "validation_attack: targeted is True"),
    ("test_attacks.pgd.targeted=true", "test_attacks.pgd: targeted is True"),
    ("+test_attacks.x={_target_: nsr.attacks.pgd, _partial_: true, steps: 1, targeted: true}", "targeted is True"),
    ("test_attacks=[clean,corruptions] corruptions.root=x", "give it to evaluate.py"),
    ("checks.stop_on=[steps]", "checks.stop_on entry is 'steps'"),
    # folders and files
    ("hydra.run.dir=''", "hydra.run.dir is ''"),
    ("hydra.run.dir=" + 300 * "a", "more than 255 bytes"),
    ("resume=''", "resume is ''"),
    ("resume=nothing", "there is no run of train.py in"),
    ("data=image_folder", "data.root is missing"),
    ("data=image_folder data.root=/nowhere", "/nowhere"),
    ("model.weights=/nowhere.pt", "cannot open '/nowhere.pt'"),
    ("objective=ensemble_adversarial train_attack.checkpoints=[/nowhere.ckpt]", "/nowhere.ckpt"),
    ("--config-dir nothing", "--config-dir is 'nothing'; it must be a folder"),
    ("hydra.searchpath=[file://nothing]", "hydra.searchpath names 'file://nothing', which is no folder"),
    ("hydra.searchpath=[nothing]", "hydra.searchpath names 'nothing', which is no folder"),
    ("logger.wandb.project=a/b", "logger.wandb.project is 'a/b'; it must be a text of 1 to 128 characters, without"),
    # settings that are checked as they are composed
    ("epsilon=8/0", "epsilon is '8/0'; it must be a number or a fraction such as 8/255"),
    ("trainer.devices=0", "trainer.devices is 0"),
    ("trainer.devices=[0,-1]", "trainer.devices entry is -1"),
    ("trainer.inference_mode=true", "it must be one of False"),
    ("seed=1.5", "seed is 1.5; it must be a whole number"),
    ("layers=[3]", "layers is [3]; it must be a layer's name"),
    ("compile=true sync_batch_norm=true", "compile and sync_batch_norm are both true"),
    ("model._target_=Net", "model._target_ is 'Net'; it must be a class or function, package.module.Name"),
    # loggers
    ("logger.wandb.project=null", "project is None"),
    (f"logger.wandb.group={'g' * 129}", "it must be a text of 1 to 128 characters"),
    (f"logger.wandb.tags=[{'t' * 65}]", "it must be a text of 1 to 64 characters"),
    ("logger.wandb.tags=[one,one]", "it must be a list of different texts"),
    ("logger.wandb.mode=online_", "mode is 'online_'; it must be one of online, offline"),
    ("logger=tensorbord", "logger=tensorbord: there is no such choice (did you mean 'tensorboard'?)"),
    ("logger=[csv,nope]", "logger=[nope]: there is no such choice"),
    ("+logger.mine=3", "logger.mine is 3; it must have a _target_"),
    ("+logger.mine._target_=nowhere.Logger", "logger.mine._target_ is nowhere.Logger; it must be importable"),
    ("layers=[relu9]", "no layer matches 'relu9' in SmallCNN (did you mean 'relu4'?)"),
]
EVALUATE = [
    ("", "nothing to evaluate: give checkpoint="),
    ("model=small_cnn data=digits", "nothing to evaluate"),
    ("checkpoint=3", "checkpoint is 3; it must be a path"),
    ("checkpoint=none.ckpt", "cannot open 'none.ckpt'"),
    ("evaluation.n_examples=0", "evaluation.n_examples is 0"),
    ("evaluation.subset=random", "evaluation.subset is 'random'"),
    ("test_attacks=[pdg]", "did you mean 'pgd'?"),
    ("checks.stop_on=[convergence] checks.enabled=false", "no check is evaluated"),
    (
        "shard=1/2 +trainer.limit_test_batches=1",
        "shard is a part of the whole test set; leave trainer.limit_test_batches=1",
    ),
    (
        "merge=[x] +trainer.limit_test_batches=0.5",
        "merge is a part of the whole test set; leave trainer.limit_test_batches",
    ),
    (
        "only=[7] +trainer.limit_test_batches=1",
        "only is a part of the whole test set; leave trainer.limit_test_batches",
    ),
    ("merge=[]", "merge is []; it must be a list such as [FOLDER], or null"),
    ("only=[]", "only is []; it must be a list such as [pgd] or [17, 4023], or null"),
    ("test_attacks=[]", "test_attacks is []; it must name what is tested"),
]
INTERVENTIONS, CURVE = "analyses=[interventions] analysis.interventions", "test_attacks=[curve] test_attacks.curve"
CHECKPOINT = [  # beside the checkpoint of a run
    ("model=resnet20", "another model or variant?"),
    (f"{INTERVENTIONS}.fractions=[0.5,1.5]", "fractions entry is 1.5; it must be a number above 0 and at"),
    (f"{INTERVENTIONS}.fractions=[]", "fractions is []; it must be a list of"),
    (f"{INTERVENTIONS}.kinds=[patch_clena]", "kinds entry is 'patch_clena'; it must be one of patch_clean"),
    (f"{INTERVENTIONS}.rankings=activation", "it must be one of activation, relative, squared"),
    (f"{INTERVENTIONS}.n_random_sets=1", "n_random_sets is 1"),
    (f"{INTERVENTIONS}.fracions=[1]", "did you mean 'analysis.interventions.fractions'?"),
    (f"{INTERVENTIONS}.layers=[]", "layers is []; it must be a layer's name or pattern"),
    (f"{INTERVENTIONS}.layers=[relu9]", "layers has 'relu9', which matches no hooked layer (did you mean 'relu4'?)"),
    ("analyses=[interventions] evaluation.n_examples=19", "the number of images is 19; interventions need 20 or more"),
    ("analyses=[interventions] trainer.devices=2", "trainer.devices is 2; analyses work on one"),
    ("analyses=[intervention]", "there is no such choice (did you mean 'interventions'?)"),
    ("test_attacks=[autoattack] test_attacks.autoattack.attacks=[]", "attacks is [] and version 'standard'"),
    ("test_attacks=[corruptions] corruptions.root=x corruptions.severities=[]", "corruptions.severities is []"),
    ("test_attacks=[corruptions] corruptions.root=x corruptions.severities=[1,6]", "corruptions.severities entry is 6"),
    ("data.classes=11", "data.classes is 11, but Digits has 10 classes and the network 10 outputs"),
    ("evaluation=3", "evaluation is 3; it must be settings such as evaluation.cache"),
    ("evaluation=null", "evaluation is None; it must be settings such as"),
    ("evaluation.robustbench=3", "evaluation.robustbench is 3; it must be settings such as"),
    ("evaluation.robustbench.number_forward_passes=x", "number_forward_passes is 'x'; it must be a whole number"),
    ("evaluation.robustbench.name=[]", "evaluation.robustbench.name is []; it must be a text"),
    ("evaluation.cache=/proc/x", "evaluation.cache is '/proc/x'; it cannot be made"),
    ("evaluation.cache=/dev/null", "evaluation.cache is '/dev/null'; it cannot be made"),
    (f"evaluation.cache={300 * 'a'}", "more than 255 bytes"),
    (f"{CURVE}.scales=[]", "test_attacks.curve.scales is []; it must be a list of different numbers"),
    (f"{CURVE}.scales=[0,1]", "test_attacks.curve.scales entry is 0; it must be a number above 0"),
    (f"{CURVE}.scales=[1,1]", "it must be a list of different numbers"),
    (f"{CURVE}.scales=[100]", "it must be a number at least 0 and at most 1"),
    (
        "test_attacks=[clean,pgd] checks.stop_on=[unbounded_attack_fails,square_stronger_than_pgd]",
        "checks.stop_on has square_stronger_than_pgd, which needs the rows square and pgd; test_attacks lacks",
    ),
]


BAD = [("train", *row) for row in TRAIN] + [("evaluate", *row) for row in EVALUATE]


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [pytest.param(*row, marks=pytest.mark.slow if place % 8 else ()) for place, row in enumerate(BAD)],
    ids=lambda value: value[:50] if isinstance(value, str) else None,
)
def test_bad_input_is_answered_in_one_line(refused, program, line, message):
    words = [line] if ": " in line else line.split()
    assert message in refused(program, *words)


@pytest.mark.parametrize(("line", "message"), CHECKPOINT)
def test_bad_input_beside_a_checkpoint_is_answered_in_one_line(refused, best, line, message):
    assert message in refused("evaluate", best, "trainer.accelerator=cpu", *line.split())


def test_an_attack_in_a_wrapper_must_not_aim_at_the_true_classes(refused, best):
    fixed = best.removeprefix("checkpoint=")
    words = ["train_attack=ensemble", f"train_attack.checkpoints=[{fixed}]", "train_attack.attack.targeted=true"]
    assert "train_attack: targeted is True" in refused("train", *words)


def test_a_data_set_without_network(refused, monkeypatch, tmp_path):
    import torchvision

    def fail(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fail)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    text = refused("train", "data=cifar10", f"data.root={tmp_path}")
    assert "cifar-10-python.tar.gz" in text
    assert str(tmp_path) in text


def test_folders_of_images(refused, folder):
    command = ["data=image_folder", f"data.root={folder}"]
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    assert "0.png" in refused("train", *command)
    for image in (folder / "train" / "dog").iterdir():
        image.unlink()
    assert "dog" in refused("train", *command)
    (folder / "train" / "dog").rmdir()
    assert "dog" in refused("train", *command) or "class" in refused("train", *command)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_whose_header_alone_is_sound(refused, folder, split, monkeypatch):
    """Channels and size are read off it; that its pixels are broken shows when all are decoded, before the run."""
    monkeypatch.setattr("nsr.data.description.SAMPLE", 1)
    path = folder / split / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:45])  # the first pixels' chunk has begun
    command = ["data=image_folder", f"data.root={folder}", "data.validation_images=4", "data.batch_size=2"]
    assert f"{path} cannot be read as an image" in refused("train", *command)


def test_a_fixed_network_of_other_classes(refused, folder, trained):
    """The digits' network has ten classes and one channel, the folder's images two and three."""
    command = ["data=image_folder", f"data.root={folder}", "objective=ensemble_adversarial", "model.width=4"]
    checkpoint = trained / "checkpoints" / "best.ckpt"
    text = refused("train", *command, f"train_attack.checkpoints=[{checkpoint}]", "data.channels=1")
    assert f"train_attack.checkpoints: '{checkpoint}' cannot be used on these data: the network gives 10 logits" in text
    text = refused("train", *command, f"train_attack.checkpoints=[{checkpoint}]")
    assert "cannot be used on these data" in text


def test_a_folder_without_test_images_is_refused_before_training(refused, folder):
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "test").rmdir()
    assert "has no test" in refused("train", "data=image_folder", f"data.root={folder}")


def test_a_cache_of_another_evaluation_is_refused_before_anything_is_made(refused, best, tmp_path):
    ResultCache(tmp_path / "cache", {"seed": 5}, {})
    text = refused("evaluate", best, "trainer.accelerator=cpu", f"evaluation.cache={tmp_path / 'cache'}")
    assert "caches another evaluation" in text and "set evaluation.cache to another folder" in text


def test_a_directory_that_holds_a_run(refused, trained):
    message = refused("train", f"hydra.run.dir={trained}")
    assert "holds a run of other settings: model.width was 4 and is 32; " in message
    assert message.count(" was ") == 5 and "more; set hydra.run.dir to another" in message


def test_a_checkpoint_that_is_cut_short(refused, trained, tmp_path):
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    short = tmp_path / "short.ckpt"
    short.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused("evaluate", f"checkpoint={short}")


def test_a_checkpoint_on_other_data_than_it_was_trained_on(refused, trained, folder):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    command = (f"checkpoint={checkpoint}", "data=image_folder", f"data.root={folder}")
    assert "which is none of the network's classes, 0 = '0', 1 = '1'" in refused("evaluate", *command)
    text = refused("evaluate", *command, "data.class_names=ignore")
    assert f"'{checkpoint}' was trained on other data: channels was 1 and is 3; " in text
    assert "leave data=NAME out, or evaluate a checkpoint that was trained on these data" in text


def test_flags_may_stand_between_settings(capsys):
    arguments = ["seed=0", "-m", "epsilon=8,9"]
    with pytest.raises(SystemExit):
        check_command_line("train", arguments)
    assert capsys.readouterr().err.startswith("error: epsilon is 8; it must be")
    with pytest.raises(SystemExit) as caught:
        check_command_line("train", ["seed=0", "--epochs", "3"])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("error: unrecognized arguments: --epochs 3; settings are given as")
    with pytest.raises(SystemExit):
        check_command_line("train", ["-m", "--cfg", "job"])
    assert capsys.readouterr().err.startswith("error: --multirun and --cfg cannot be given together; ")
    for alone in (["--resolve"], ["--package", "data"], ["--experimental-rerun", "config.pickle"]):
        with pytest.raises(SystemExit):
            check_command_line("train", alone)
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and line.startswith(f"error: {alone[0]} is ")


def test_a_sweep_for_other_machines_is_started_on_one_that_has_less():
    wanted = ["trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=4", "trainer.precision=16-mixed"]
    check_command_line("train", ["-m", "sweep=slurm", *wanted, "sync_batch_norm=true", "seed=0,1"])
    with pytest.raises(SystemExit):
        check_command_line("train", ["-m", "sweep=joblib", *wanted, "seed=0,1"])


def test_errors_of_a_job(capsys, monkeypatch):
    for error in (InputError("bad"), RunStopped("broken")):
        with pytest.raises(SystemExit), one_line_errors():
            raise error
        assert capsys.readouterr().err == f"error: {error}\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError), one_line_errors():
        raise InputError("bad")
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


def test_any_other_error_is_one_line_with_its_place_and_a_traceback_in_the_log(capsys, caplog):
    caplog.set_level("INFO")
    for error in (KeyError("late"), ValueError("two\nlines"), PermissionError(13, "denied"), ZeroDivisionError()):
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            raise error
        text = capsys.readouterr().err
        assert stopped.value.code == 1
        assert text.startswith("error: ") and text.count("\n") == 1
        assert type(error).__name__ in text and f"{__file__}, line " in text
        assert "Traceback" not in text and "Traceback" in caplog.text
        caplog.clear()


def test_evaluations_lie_beside_their_run(tmp_path):
    assert evaluation_directory("runs/a/checkpoints/best.ckpt").endswith("runs/a/evaluations")
    assert evaluation_directory("somewhere/best.ckpt") == "runs/evaluations"
    assert evaluation_directory(None) == "runs/evaluations"


def answer(entry: str, *arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *python, str(ROOT / entry), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def imported(done: subprocess.CompletedProcess) -> set[str]:
    """The packages that a command imported, by the report of `python -X importtime`."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


SLOW_TO_IMPORT = {"torch", "pytorch_lightning", "torchmetrics", "wandb", "pandas", "matplotlib", "sklearn", "scipy"}


@pytest.mark.parametrize("entry", ["train.py", "evaluate.py"])
def test_help_explains_and_is_quick(entry):
    """Quick is what needs none of the large packages: Hydra's own part is a second, whatever nsr does."""
    done = answer(entry, "--help", python=("-X", "importtime"))
    assert done.returncode == 0
    assert "sns" in done.stdout or entry == "evaluate.py"
    assert "checkpoint" in done.stdout or entry == "train.py"
    assert "hydra" in imported(done) and not SLOW_TO_IMPORT & imported(done)


def test_a_wrong_value_is_answered_quickly():
    done = answer("train.py", "epsilon=8", python=("-X", "importtime"))
    assert done.returncode == 1
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1 and said[0].startswith("error: epsilon is 8")
    assert "hydra" in imported(done) and not SLOW_TO_IMPORT & imported(done)


@pytest.mark.slow
def test_a_main_configuration_of_the_users_own(tmp_path):
    """It lies in the folder of --config-dir; a resumed run finds it again."""
    (tmp_path / "own").mkdir()
    text = "defaults: [train, _self_]\nseed: 7\ntrainer: {max_epochs: 1, limit_train_batches: 2}\n"
    (tmp_path / "own" / "mine.yaml").write_text(text)
    run, name = tmp_path / "run", ["--config-dir", str(tmp_path / "own"), "-cn", "mine"]
    small = ["logger=csv", "model.width=4", "test_attacks=[clean]", "pictures=false", "report=false"]
    first = answer("train.py", *name, *small, f"hydra.run.dir={run}")
    assert first.returncode == 0, first.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 7
    second = answer("train.py", f"resume={run}", "trainer.max_epochs=2", "scheduler=constant")
    assert second.returncode == 0, second.stderr
    assert [row["epoch"] for row in rows(run / "metrics.csv")] == ["0", "1", "2"]


@pytest.mark.slow
def test_paths_are_printed_as_from_where_the_command_was_given(tmp_path):
    """Also where Hydra changes to the run directory."""
    small = ["logger=csv", "model.width=4", "test_attacks=[clean]", "pictures=false", "report=false"]
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "hydra.run.dir=run", "hydra.job.chdir=true"]
    command = [sys.executable, str(ROOT / "train.py"), *small, *short]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "checkpoint=run/checkpoints/best.ckpt" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("override", "offered"),
    [("data.train_crop=rand", False), ("optimizer.foo=1", False), ("callbacks.mine._target_=my.Own", True)],
)
def test_a_plus_is_offered_only_where_the_target_may_take_the_setting(override, offered):
    assert ("adds one" in refusal(made, "train", override)) == offered


@pytest.mark.parametrize("program", [main.train, main.evaluate])
@pytest.mark.parametrize("step", ["check", "command"])
def test_ctrl_c_outside_a_job_is_one_line(program, step, monkeypatch, capsys):
    def interrupt(*arguments: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "tolerate_closed_streams", lambda: None)
    monkeypatch.setattr(main, "check_command_line", interrupt if step == "check" else lambda *arguments: None)
    monkeypatch.setattr(main, f"_{program.__name__}", interrupt)
    with pytest.raises(SystemExit) as ended:
        program()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted by SIGINT\n")
