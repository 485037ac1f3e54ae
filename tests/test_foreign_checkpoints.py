"""A third-party checkpoint given to the command: foreign names are refused in one line, and nothing of it runs."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from nsr.app.command_line import check_command_line
from nsr.app.evaluate import evaluate
from nsr.app.train import train
from nsr.errors import InputError
from tests.conftest import TINY, evaluated, image_folder, job

ATTACKS = ("test_attacks=[clean,fgsm]", "checks.enabled=false", "sensitivity_attack.steps=2", "trainer.accelerator=cpu")
FOLDER = ("data=image_folder", "data.validation_images=4", "data.batch_size=4", "data.augmentation=none")
SMALL = tuple(entry for entry in TINY if not entry.startswith(("model.", "test_attacks.pgd.")))


@pytest.fixture
def saved(trained) -> dict[str, Any]:
    """The content of a real checkpoint, to be changed."""
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder that torchvision's networks can be trained on."""
    return image_folder(tmp_path_factory.mktemp("images") / "images", images=8)


class Proof:
    """Evidence that a name of a checkpoint was imported or called."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.trace = folder / "trace"
        code = f"from pathlib import Path\ndef run(*arguments, **settings):\n    Path({str(self.trace)!r}).mkdir()\n"
        (folder / "evil_module.py").write_text(f"{code}run()\nPath({str(self.trace)!r}).rmdir()\n")
        patch.syspath_prepend(folder)
        self.instantiated: list[Any] = []
        from hydra import utils

        original = utils.instantiate

        def recording(settings: Any, **further: Any) -> Any:
            self.instantiated.append(settings)
            return original(settings, **further)

        patch.setattr(utils, "instantiate", recording)
        self.modules = set(sys.modules)

    def nothing_ran(self) -> bool:
        new = {name for name in set(sys.modules) - self.modules if not name.startswith(("nsr", "torch", "torchvision"))}
        return not (self.instantiated or self.trace.exists() or new or "evil_module" in sys.modules)


@pytest.fixture
def proof(tmp_path, monkeypatch):
    made = Proof(tmp_path, monkeypatch)
    yield made
    sys.modules.pop("evil_module", None)


@pytest.fixture
def refused(tmp_path, capsys, proof):
    """Gives a checkpoint to the command, and to the job behind it; its one line."""

    def give(content: Any, *further: str) -> str:
        path = tmp_path / "theirs.ckpt"
        torch.save(content, path)
        command = [f"checkpoint={path}", *ATTACKS, *further]
        with pytest.raises(SystemExit) as stopped:
            check_command_line("evaluate", [*command, f"hydra.run.dir={tmp_path / 'run'}"])
        assert stopped.value.code == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        assert not (tmp_path / "run").exists()
        with pytest.raises(InputError) as caught:
            evaluated(tmp_path / "run", *command)
        (tmp_path / "run" / "status.json").unlink()  # says that it failed, and why
        (tmp_path / "run").rmdir()  # and nothing else is there
        assert text == f"error: {caught.value}\n"
        assert proof.nothing_ran()
        return text

    return give


# ---------------------------------------------------------------- attacks
def harmful(trace: Path) -> dict[str, dict[str, Any]]:
    """Settings that make a directory, or fetch something, if hydra gets them."""
    make = f"__import__('os').mkdir({str(trace)!r})"
    source = f'#include <cstdlib>\nstruct A {{ A() {{ std::system("mkdir {trace}"); }} }} a;'
    inline = {"_target_": "torch.utils.cpp_extension.load_inline", "name": "evil", "cpp_sources": source}
    return {
        "torch.hub.load": {**dict.fromkeys(("repo_or_dir", "model"), str(trace)), "_target_": "torch.hub.load"},
        "torch.utils.cpp_extension.load_inline": inline,
        "builtins.eval": {"_target_": "builtins.eval", "_args_": [make]},
        "os.mkdir": {"_target_": "os.mkdir", "path": str(trace)},
        "evil_module.run": {"_target_": "evil_module.run"},
    }


EVIL = "evil_module.run"
NAMES = [EVIL, *(pytest.param(name, marks=pytest.mark.slow) for name in harmful(Path("trace")) if name != EVIL)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["model", "data"])
def test_a_class_that_is_not_ours(refused, saved, proof, part, name):
    saved["nsr_settings"][part] = harmful(proof.trace)[name]
    text = refused(saved)
    if name == "builtins.eval":  # its arguments are noticed first
        assert f"the checkpoint's {part} has _args_, which is hydra's: refused" in text
    else:
        assert f"the checkpoint's {part} is {name}, which is none of the" in text
        assert f"if you trust that code, add trusted=[{name}], else give {part}=NAME" in text


PLACES = ["width", "list", "deep", "weights", "normalization", "mean", "epsilon", "new"]


@pytest.mark.parametrize("place", PLACES)
def test_a_class_below_ours(refused, saved, proof, place):
    evil = harmful(proof.trace)[EVIL]
    settings = saved["nsr_settings"]
    if place in ("mean", "epsilon"):
        settings["data"][place] = {"linf": evil} if place == "epsilon" else [evil]
    else:
        below = {"list": [[evil]], "deep": {"a": [{"b": (evil,)}]}}.get(place, evil)
        settings["model"]["width" if place in ("list", "deep") else place] = below
    assert f"is {EVIL}, which is none of the" in refused(saved)


@pytest.mark.parametrize("key", ["epsilon", "norm", "layers"])
def test_the_threat_model_is_no_way_in(refused, saved, proof, key):
    """`epsilon` is looked up by every attack of the suite, which hydra makes with all that is in it."""
    evil = harmful(proof.trace)["os.mkdir"]
    saved["nsr_settings"][key] = [evil] if key == "layers" else evil
    assert f"the checkpoint's {key} is " in refused(saved)


def test_epsilon_from_the_data_is_no_way_in(refused, saved, proof):
    saved["nsr_settings"]["data"]["epsilon"] = {"l2": harmful(proof.trace)["os.mkdir"]}
    assert "the checkpoint's data.epsilon.l2 is os.mkdir" in refused(saved, "norm=l2")


@pytest.mark.parametrize(("part", "key"), [("model", "_args_"), ("model", "_recursive_"), ("data", "_partial_")])
def test_hydras_other_keys(refused, saved, part, key):
    saved["nsr_settings"][part][key] = ["DEFAULT"] if key == "_args_" else False
    assert f"the checkpoint's {part} has {key}, which is hydra's: refused" in refused(saved)


@pytest.mark.parametrize("place", ["model", "data", "trainer", "epsilon"])
def test_a_look_up(refused, saved, monkeypatch, place):
    monkeypatch.setenv("SECRET", "secret")
    settings = saved["nsr_settings"]
    if place == "epsilon":
        settings["epsilon"] = "${oc.env:HOME}"
    else:
        settings[place]["extra"] = ["a", "${oc.env:HOME}${oc.env:SECRET}"]
    text = refused(saved)
    assert "${oc.env:HOME}" in text and "settings that look something up are refused" in text
    assert "secret" not in text and os.environ["HOME"] not in text.replace("${oc.env:HOME}", "").split("settings")[0]


class Harm:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("place", ["settings", "state_dict", "beside"])
def test_a_pickle_that_would_write_a_file(refused, saved, proof, place, tmp_path):
    if place == "settings":
        saved["nsr_settings"]["model"]["width"] = Harm(proof.trace)
    elif place == "state_dict":
        saved["state_dict"]["net.net.conv1.weight"] = Harm(proof.trace)
    else:
        saved["callbacks"] = Harm(proof.trace)
    text = refused(saved)
    assert "refused to read" in text and "mkdir, which could run code when loaded" in text
    torch.load(tmp_path / "theirs.ckpt", weights_only=False)  # it would have
    assert proof.trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.update(nsr_settings=3), "its settings are not a mapping"),
        (lambda saved: saved.update(state_dict=3), "its state_dict is not a mapping of names to tensors"),
        (
            lambda saved: saved["state_dict"].update({"net.a": "b"}),
            "its state_dict is not a mapping of names to tensors",
        ),
        (lambda saved: saved["nsr_settings"].pop("model"), "the checkpoint's model names no class; give model=NAME"),
        (lambda saved: saved["nsr_settings"].update(data=[]), "the checkpoint's data names no class; give data=NAME"),
        (lambda saved: saved["nsr_settings"].pop("norm"), "the checkpoint's norm is None"),
        (lambda saved: saved["nsr_settings"]["model"].update(width="a"), "width is 'a'"),
        (lambda saved: saved["nsr_settings"]["model"].update(normalization="x"), "model.normalization is 'x'"),
        (lambda saved: saved["nsr_settings"]["model"].update(depth=3), "model.depth is not an argument of"),
    ],
)
def test_settings_that_are_broken(tmp_path, saved, change, message):
    change(saved)
    torch.save(saved, tmp_path / "broken.ckpt")
    with pytest.raises(InputError) as caught:
        evaluated(tmp_path / "run", f"checkpoint={tmp_path / 'broken.ckpt'}", *ATTACKS)
    assert message in str(caught.value)


# ---------------------------------------------------------------- surrogates
@pytest.mark.parametrize("entry", ["evaluate", "train"])
def test_a_surrogates_class(saved, trained, tmp_path, proof, entry):
    saved["nsr_settings"]["model"]["width"] = [harmful(proof.trace)["evil_module.run"]]
    torch.save(saved, tmp_path / "theirs.ckpt")
    command = [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", *ATTACKS, "test_attacks=[clean,transfer]"]
    command += [f"test_attacks.transfer.checkpoints=[{tmp_path / 'theirs.ckpt'}]"]
    if entry == "train":
        command = [*TINY[:5], "objective=ensemble_adversarial"]
        command += [f"train_attack.checkpoints=[{tmp_path / 'theirs.ckpt'}]"]
    with pytest.raises(InputError, match=r"model.width\[0\] is evil_module.run.*add trusted=\[evil_module.run\]"):
        (train if entry == "train" else evaluate)(job(entry, tmp_path / "run", *command))
    assert not proof.trace.exists() and "evil_module" not in sys.modules


# ---------------------------------------------------------------- what the user trusts
def test_a_trusted_class_is_made_and_logged(saved, tmp_path, monkeypatch, caplog):
    (tmp_path / "evil_module.py").write_text("import nsr.models\nclass Net(nsr.models.SmallCNN):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    saved["nsr_settings"]["model"]["_target_"] = "evil_module.Net"
    saved["nsr_settings"]["trusted"] = ["evil_module.Net"]  # the file's own word counts for nothing
    torch.save(saved, tmp_path / "own.ckpt")
    command = [f"checkpoint={tmp_path / 'own.ckpt'}", *ATTACKS, "evaluation.n_examples=20"]
    for number, trusted in enumerate(("[]", "[evil_module.Ne]", "[evil_module.Net.forward]")):
        with pytest.raises(InputError, match="the checkpoint's model is evil_module.Net, which is none"):
            evaluated(tmp_path / str(number), *command, f"trusted={trusted}")
        assert "evil_module" not in sys.modules
    with caplog.at_level("INFO"):
        evaluated(tmp_path / "run", *command, "trusted=[evil_module.Net]")
    path = str(tmp_path / "own.ckpt")
    logged = f"evil_module.Net of the checkpoint {path!r} is imported and called, as trusted allows"
    assert [record.getMessage() for record in caplog.records if "trusted" in record.getMessage()] == [logged]
    assert (tmp_path / "run" / "evaluation.json").exists()
    sys.modules.pop("evil_module")


@pytest.mark.parametrize(
    ("entry", "trusted"),
    [
        ("train", "[evil_module]"),
        *(("evaluate", text) for text in ("evil.Net", "[evil_*.Net]", "[a]", "[3]", "null", "['a b.c']")),
    ],
)
def test_trusted_is_a_list_of_exact_names(tmp_path, entry, trusted):
    with pytest.raises(InputError, match="it must be a (list such as|class or function)"):
        job(entry, tmp_path / "run", f"trusted={trusted}")


# ---------------------------------------------------------------- torchvision and timm
def accuracies(path: Path) -> tuple[float, float]:
    measured = json.loads(path.read_text())
    return measured["test/clean_accuracy"], measured["test/fgsm_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name", "layer"),
    [
        ("torchvision", "shufflenet_v2_x0_5", "stage2.0.branch1.4"),
        pytest.param("torchvision", "resnet18", "layer1.0.relu#2", marks=pytest.mark.slow),
        ("timm", "test_vit", "blocks.0"),
    ],
)
def test_from_training_to_an_evaluation_of_the_checkpoint(library, name, layer, images, tmp_path):
    """Nothing but the checkpoint is given the second time, and the accuracies are those of the run."""
    model = [*FOLDER, f"data.root={images}", f"model={library}", f"model.name={name}"]
    model += ["data.image_size=32"] if library == "timm" else []  # test_vit has patches of 16 x 16
    train(job("train", tmp_path / "run", *model, *SMALL, "test_attacks=[clean,fgsm]"))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    saved = torch.load(best, weights_only=True)
    assert saved["global_step"] == 2
    evaluated(tmp_path / "again", f"checkpoint={best}", *ATTACKS)
    expected = accuracies(tmp_path / "run" / "metrics.json")
    assert accuracies(tmp_path / "again" / "evaluation.json") == expected
    assert f"{layer}," in (tmp_path / "again" / "sensitivity.csv").read_text()
    # its weights as a third-party plain state_dict, into the same network by name
    state = {key.removeprefix("net.net."): value for key, value in saved["state_dict"].items() if "net.net." in key}
    torch.save(state, tmp_path / "weights.pt")
    weights = [f"model.weights={tmp_path / 'weights.pt'}", "model.normalization=data"]
    evaluated(tmp_path / "plain", *model, *weights, *ATTACKS)
    assert accuracies(tmp_path / "plain" / "evaluation.json") == expected


def direct(images: Path, target: str, **arguments: Any) -> dict[str, Any]:
    """Settings that name a library's builder, with weights from elsewhere requested at each place."""
    loaders = {"weights": "DEFAULT", "pretrained": True, "weights_backbone": "DEFAULT", "checkpoint_path": "/nowhere"}
    model = {"_target_": target, "normalization": "data", **loaders, **arguments}
    data = {"_target_": "nsr.data.ImageFolder", "root": str(images), "batch_size": 4, "validation_images": 4}
    data |= {"channels": None, "image_size": 32, "classes": None, "mean": None, "std": None}
    return {"model": model, "data": data, "norm": "linf", "epsilon": "8/255", "layers": None}


@pytest.mark.parametrize("library", [pytest.param("torchvision", marks=pytest.mark.slow), "timm"])
def test_weights_from_elsewhere_are_forced_off(library, images, tmp_path, monkeypatch):
    import timm

    def fail(*arguments, **settings):
        raise AssertionError("weights were asked for")

    for name in ("torch.hub.load_state_dict_from_url", "torchvision.models._api.load_state_dict_from_url"):
        monkeypatch.setattr(name, fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", fail)
    if library == "torchvision":
        net = torchvision.models.resnet18(num_classes=2)
        settings = direct(images, "torchvision.models.resnet18", num_classes=2)
    else:
        net = timm.create_model("test_resnet", num_classes=2)
        settings = direct(images, "timm.create_model", model_name="test_resnet", num_classes=2)
    nested = copy.deepcopy(settings)
    nested["model"] = {"_target_": "nsr.models.Classifier", "net": settings["model"], "normalization": "none"}
    del nested["model"]["net"]["normalization"]
    state = {f"net.net.{key}": value for key, value in net.state_dict().items()}
    state |= {"net.normalize.mean": torch.zeros(3, 1, 1), "net.normalize.std": torch.ones(3, 1, 1)}
    inner = {f"net.net.net.{key}": value for key, value in net.state_dict().items()}
    for number, content in enumerate(
        ({"nsr_settings": settings, "state_dict": state}, {"nsr_settings": nested, "state_dict": inner})
    ):
        torch.save(content, tmp_path / "direct.ckpt")
        evaluated(tmp_path / f"run{number}", f"checkpoint={tmp_path / 'direct.ckpt'}", *ATTACKS)
        assert (tmp_path / f"run{number}" / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp/evil", "timm/resnet18"])
@pytest.mark.parametrize("target", ["timm.create_model", "nsr.models.timm_model"])
def test_a_hub_in_a_checkpoint(refused_quickly, images, target, name):
    if target == "timm.create_model":
        text = refused_quickly(direct(images, target, model_name=name, num_classes=2))
        assert f"the checkpoint's model.model_name is {name!r}, no name of timm's own: refused" in text
    else:
        settings = direct(images, target)
        settings["model"] = {"_target_": target, "name": name, "channels": 3, "classes": 2, "image_size": 32}
        assert f"model.name is {name!r}, which looks in a hub or a folder: refused" in refused_quickly(settings)


@pytest.fixture
def refused_quickly(tmp_path):
    """The line with which a checkpoint of these settings is refused by the job."""

    def give(settings: dict[str, Any]) -> str:
        torch.save({"nsr_settings": settings, "state_dict": {"net.net.a": torch.ones(1)}}, tmp_path / "theirs.ckpt")
        with pytest.raises(InputError) as caught:
            evaluated(tmp_path / "run", f"checkpoint={tmp_path / 'theirs.ckpt'}", *ATTACKS)
        return str(caught.value)

    return give


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=torchvision", "model.name=resnet18"], "takes images of 3 channels, but data.channels is 1;"),
        (["model=torchvision"], "model.name is missing; give it on the command line: model.name=..."),
        (["model=torchvision", "model.name=squeezenet1_1", *FOLDER], "SqueezeNet takes no images of 3 x 8 x 8: Given"),
        (["model=timm", "model.name=vit_tiny_patch16_224"], "VisionTransformer takes no images of 1 x 8 x 8: "),
    ],
)
def test_what_the_command_says(arguments, message, images, tmp_path):
    root = [f"data.root={images}"] if "data=image_folder" in arguments else []
    with pytest.raises(InputError) as caught:
        train(job("train", tmp_path / "run", *arguments, *root, "trainer.accelerator=cpu", "logger=csv"))
    assert message in str(caught.value)
