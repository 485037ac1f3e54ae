"""What a user sees who mistypes: one line, a non-zero exit, nothing made."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nsr.app.command_line import check_command_line, one_line_errors
from nsr.app.composition import evaluation_directory
from nsr.errors import InputError, RunStopped

ROOT = Path(__file__).parent.parent


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Runs the check of a command that must fail; gives its one line."""

    def check(entry: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            check_command_line(entry, list(arguments))
        assert stopped.value.code == 1
        assert sorted(tmp_path.rglob("*")) == before, "something was made"
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return text

    return check


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images of two classes, for training and for testing."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(root / split / label / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=mnist"], "data=mnist: there is no such choice (did you mean 'fashion_mnist'?)"),
        (["attacks=[clean,fgsmm]"], "attacks=[fgsmm]: there is no such choice (did you mean 'fgsm'?)"),
        (["experiment=digit_sns"], "did you mean 'digits_sns'?"),
        (["atack.epsilon=3"], "atack.epsilon: there is no such setting (did you mean 'attack.epsilon'?)"),
        (["checkpoint=best.ckpt"], "checkpoint: there is no such setting"),
        (["seed=0.5"], "seed is 0.5; it must be a whole number at least 0 and at most 4294967295"),
        (["logger.mode=None"], "logger.mode is 'None'; it must be one of online, offline, None (null on the command"),
        (["analyses=interventions"], "analyses: there is no such setting; evaluate.py has it"),
        (["stabilizer.wieght=3"], "did you mean 'stabilizer.weight'?"),
        (["trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
        (["epsilon=8"], "epsilon is 8; it must be a number at least 0 and at most 1"),
        (["epsilon=-8/255"], "epsilon is '-8/255'"),
        (["norm=l2", "epsilon=9"], "epsilon is 9; it must be a number at least 0 and at most 8"),
        (["norm=l3"], "norm is 'l3'; it must be one of linf, l2"),
        (["attack.steps=2.5"], "attack.steps is 2.5; it must be a whole number"),
        (["attack.steps=0"], "attack.steps is 0"),
        (["attack.step_size=-1"], "attack.step_size is -1; it must be a number above 0"),
        (["stabilizer.weight=much"], "stabilizer.weight is 'much'; it must be a number at least 0"),
        (["stabilizer.top=1.5"], "stabilizer.top is 1.5"),
        (["data=image_folder"], "data.root is missing; give it on the command line: data.root=..."),
        (["seed=0,1,two"], "seed is 'two'; it must be a whole number"),
        (["seed=range(0,3)", "epsilon=0.1,8"], "epsilon is 8"),
        (["model=[a"], "model=[a: "),
        (["seed=1.5"], "seed is 1.5"),
        (["objective=tradse"], "objective=tradse: there is no such choice (did you mean 'trades'?)"),
        (["callbacks=[awpp]"], "callbacks=[awpp]: there is no such choice (did you mean 'awp'?)"),
        (["objective=free", "attack=pgd"], "objective=free trains on the perturbation it keeps"),
        (["attack=kept"], "attack=kept belongs to objective=free, not to AdversarialTraining"),
        (["objective=free", "callbacks=[awp]"], "callbacks has awp, which has no meaning with objective=free"),
        (
            ["validation_attack=kept"],
            "validation_attack=kept: there is no such choice; validation_attack is one of bim, fgsm, pgd",
        ),
        (["objective=eat"], "attack.checkpoints is missing; give it on the command line: attack.checkpoints=..."),
        (["objective=eat", "attack.checkpoints=[]"], "attack.checkpoints is []; it must be a list of checkpoints"),
        (["objective=mart", "objective.label_smoothing=0.1"], "objective.label_smoothing: there is no such setting"),
        (
            ["objective.label_smoothing=2"],
            "objective.label_smoothing is 2; it must be a number at least 0 and at most 1",
        ),
        (["objective=trades", "objective.beta=-1"], "objective.beta is -1"),
        (["objective=free", "objective.replays=0"], "objective.replays is 0; it must be a whole number at least 1"),
        (
            ["objective=trades", "attack.targeted=true"],
            "attack.targeted is True; it must be one of False, least_likely",
        ),
        (["attack.loss=kld"], "attack.loss is 'kld'; it must be one of cross_entropy, margin, kl (did you mean 'kl'?)"),
        (["attack.restarts=0"], "attack.restarts is 0"),
        (["stabilizer.refresh=epcoh"], "did you mean 'epoch'?"),
        (["stabilizer.distance=l3"], "stabilizer.distance is 'l3'; it must be one of l1, l2, cosine"),
        (["callbacks=[ema]", "callbacks.ema.decay=2"], "callbacks.ema.decay is 2"),
        (["callbacks=[stabilizer_ramp]", "stabilizer=none"], "no weight to ramp: stabilizer is none or its weight 0"),
        (["callbacks=[stabilizer_ramp]", "stabilizer.weight=0"], "no weight to ramp"),
        (
            ["callbacks=[stabilizer_ramp]", "callbacks.stabilizer_ramp.start=60"],
            "callbacks.stabilizer_ramp.start is 60; it must be below the 60 epochs of the run, or the ramp never",
        ),
        (
            ["objective=free", "callbacks=[stabilizer_ramp]", "callbacks.stabilizer_ramp.start=15"],
            "below the 15 epochs",
        ),
        (["objective=natural", "stabilizer=none", "callbacks=[epsilon_ramp]"], "attacks nothing"),
        (["scheduler=piecewise", "scheduler.milestones=[a]"], "scheduler.milestones entry is 'a'"),
        (["alarms.stop_on=[one_clas]"], "did you mean 'one_class'?"),
        (
            ["alarms.stop_on=[one_step]"],
            "alarms.stop_on entry is 'one_step'; it must be one of catastrophic_overfitting",
        ),
        (["alarms.stop_on=constant"], "alarms.stop_on is 'constant'; it must be a list, such as"),
        (["alarms=false"], "alarms is False; its settings are alarms.stop_on"),
    ],
)
def test_the_configuration_alone(refused, arguments, message):
    assert message in refused("train", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alarms.stop_on=[onestep]"], "did you mean 'one_step'?"),
        (
            ["alarms.stop_on=[constant]"],
            "alarms.stop_on entry is 'constant'; it must be one of steps, one_step, square",
        ),
        (["alarms.stop_on=[square]", "alarms.judge=false"], "but alarms.judge is false: nothing is judged"),
        (["alarms.judge=1"], "alarms.judge is 1; it must be one of True, False"),
        (["alarms=false"], "alarms is False; its settings are alarms.stop_on and, in an evaluation, alarms.judge"),
    ],
)
def test_an_evaluations_configuration_alone(refused, arguments, message):
    assert message in refused("evaluate", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers=[layer9]"], "no layer matches 'layer9' in SmallCNN; it has 'conv1'"),
        (["layers=[rellu1]"], "did you mean 'relu1'?"),
        (
            ["stabilizer.layers=[relu9]"],
            "no tapped layer matches 'relu9' (did you mean 'relu4'?); tapped are relu1, relu2",
        ),
        (["trainer.devices=99", "trainer.accelerator=cpu"], "trainer.devices is 99; there are"),
        (["hydra.run.dir=/dev/null/run"], "/dev/null is not writable; set hydra.run.dir"),
        (["data=image_folder", "data.root=/nowhere"], "/nowhere"),
        (["model.weights=/nowhere.pt"], "cannot open '/nowhere.pt'"),
        (["model=resnet18", "data=digits", "model.image_size=4"], "4"),
        (["objective=trades", "attack.random_start=false"], "loss is 'kl' without random start"),
        (["objective=nfgsm", "attack.projection=true"], "beyond the ball of radius"),
        (["stabilizer.distance=cosine"], "a neuron of relu4 has one value, which has no direction"),
        (["objective=eat", "attack.checkpoints=[/nowhere.ckpt]"], "/nowhere.ckpt"),
    ],
)
def test_what_network_data_and_machine_tell(refused, arguments, message):
    assert message in refused("train", *arguments)


def test_no_gpu(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "trainer.accelerator is gpu; there is none" in refused("train", "trainer.accelerator=gpu")


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
    monkeypatch.setattr("nsr.data.image_folder.SAMPLE", 1)
    path = folder / split / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:45])  # the first pixels' chunk has begun
    command = ["data=image_folder", f"data.root={folder}", "data.validation_images=4", "data.batch_size=2"]
    assert f"{path} cannot be read as an image" in refused("train", *command)


def test_a_fixed_network_of_other_classes(refused, folder, trained):
    """The digits' network has ten classes and one channel, the folder's images two and three."""
    command = ["data=image_folder", f"data.root={folder}", "objective=eat", "model.width=4"]
    checkpoint = trained / "checkpoints" / "best.ckpt"
    text = refused("train", *command, f"attack.checkpoints=[{checkpoint}]", "data.channels=1")
    assert f"attack.checkpoints: '{checkpoint}' cannot be used on these data: the network gives 10 logits" in text
    text = refused("train", *command, f"attack.checkpoints=[{checkpoint}]")
    assert "cannot be used on these data" in text


def test_a_folder_without_test_images_is_refused_before_training(refused, folder):
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "test").rmdir()
    assert "has no test" in refused("train", "data=image_folder", f"data.root={folder}")


def test_a_directory_that_holds_a_run(refused, trained):
    told = refused("train", f"hydra.run.dir={trained}")
    assert "holds a run of other settings: model.width was 4 and is 32; " in told
    assert told.count(" was ") == 5 and "more; set hydra.run.dir to another" in told


def test_checkpoints(refused, trained, tmp_path):
    assert "nothing to evaluate: give checkpoint=" in refused("evaluate")
    assert "nothing to evaluate" in refused("evaluate", "model=small_cnn", "data=digits")
    assert "cannot open 'none.ckpt'" in refused("evaluate", "checkpoint=none.ckpt")
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    short = tmp_path / "short.ckpt"
    short.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused("evaluate", f"checkpoint={short}")
    best = trained / "checkpoints" / "best.ckpt"
    assert "another model or variant?" in refused("evaluate", f"checkpoint={best}", "model=resnet20")


def test_a_checkpoint_that_would_run_code(refused, tmp_path):
    import torch

    trace = tmp_path / "trace"

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save({"nsr_settings": {}, "state_dict": Harm()}, tmp_path / "harm.ckpt")
    assert "refused to read" in refused("evaluate", f"checkpoint={tmp_path / 'harm.ckpt'}")
    assert not trace.exists()


@pytest.mark.parametrize(
    "target", ["torch.hub.load", "builtins.eval", "nsr.models.weights.read_checkpoint", "nsr.models"]
)
def test_a_checkpoint_that_names_foreign_code(refused, trained, tmp_path, target):
    import torch

    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    saved["nsr_settings"]["model"]["_target_"] = target
    torch.save(saved, tmp_path / "foreign.ckpt")
    text = refused("evaluate", f"checkpoint={tmp_path / 'foreign.ckpt'}")
    assert f"the checkpoint's model is {target}, which is none of the networks of nsr, torchvision and timm" in text
    assert f"if you trust that code, add trusted=[{target}], else give model=NAME" in text


def test_nested_names_and_interpolations_of_a_checkpoint(refused, trained, tmp_path):
    import torch

    cases = (
        ({"_target_": "builtins.print"}, "model.width is builtins.print, which is none"),
        ("${oc.env:HOME}", "model.width is '${oc.env:HOME}': settings that look something up are refused"),
    )
    for value, message in cases:
        saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
        saved["nsr_settings"]["model"]["width"] = value
        torch.save(saved, tmp_path / "nested.ckpt")
        assert message in refused("evaluate", f"checkpoint={tmp_path / 'nested.ckpt'}")


def test_flags_may_stand_between_settings(capsys):
    arguments = ["seed=0", "-m", "epsilon=8,9"]
    with pytest.raises(SystemExit):
        check_command_line("train", arguments)
    assert capsys.readouterr().err.startswith("error: epsilon is 8; it must be")
    with pytest.raises(SystemExit) as caught:
        check_command_line("train", ["seed=0", "--epochs", "3"])
    told = capsys.readouterr().err
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        check_command_line("train", ["-m", "--cfg", "job"])
    assert capsys.readouterr().err.startswith("error: --multirun and --cfg cannot be given together; ")
    assert told.count("\n") == 1 and told.startswith("error: unrecognized arguments: --epochs 3; settings are given as")


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
        raise ZeroDivisionError  # a bug is no bad input: it keeps its traceback


def test_evaluations_lie_beside_their_run(tmp_path):
    assert evaluation_directory("runs/a/checkpoints/best.ckpt").endswith("runs/a/evaluations")
    assert evaluation_directory("somewhere/best.ckpt") == "runs/evaluations"
    assert evaluation_directory(None) == "runs/evaluations"


def answer(entry: str, *arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """What a command says, and the processor's seconds it took: the clock's would be those of its neighbours too."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    command = [sys.executable, str(ROOT / entry), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done, seconds() - before


@pytest.mark.parametrize("entry", ["train.py", "evaluate.py"])
def test_help_explains_and_is_quick(entry):
    done, seconds = answer(entry, "--help")
    assert done.returncode == 0
    assert "sns" in done.stdout or entry == "evaluate.py"
    assert "checkpoint" in done.stdout or entry == "train.py"
    assert "_target_" not in done.stdout
    assert seconds < 3


def test_a_wrong_value_is_answered_before_torch_is_loaded():
    done, seconds = answer("train.py", "epsilon=8")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: epsilon is 8")
    assert done.stderr.count("\n") == 1
    assert seconds < 3
    program = (
        "import sys; from nsr.app.composition import compose_checked; compose_checked('train', []);"
        "print([name for name in ('torch', 'pytorch_lightning', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
