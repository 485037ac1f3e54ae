"""Weight files: what fits is loaded exactly, what does not is reported in one line and leaves the net unchanged."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.models.weights import load_state_dict_file


def make_net(hidden: int = 3) -> nn.Sequential:
    layers = {"fc1": nn.Linear(2, hidden), "bn": nn.BatchNorm1d(hidden), "relu": nn.ReLU(), "fc2": nn.Linear(hidden, 2)}
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {
        key: torch.rand_like(tensor) if tensor.is_floating_point() else torch.tensor(5)
        for key, tensor in make_net().state_dict().items()
    }


def refused(net: nn.Module, path: Any) -> str:
    """The one line of the error, after checking that the net was left alone."""
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_state_dict_file(net, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("wrapper", "prefix"), [(None, ""), ("state_dict", "module."), ("model", "")])
def test_loads_what_fits(
    state: dict[str, Tensor], tmp_path: Path, prefix: str, wrapper: str | None, zipped: bool
) -> None:
    stored: Any = OrderedDict((prefix + key, tensor) for key, tensor in state.items())
    path = tmp_path / "weights.pt"
    torch.save({wrapper: stored, "epoch": 3} if wrapper else stored, path, _use_new_zipfile_serialization=zipped)
    net = make_net()
    load_state_dict_file(net, str(path))
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def test_the_checkpoint_of_a_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    """The module keeps its Classifier as `net`, the Classifier its network as `net`."""
    classifier = {"net.normalize.mean": torch.zeros(1), "stabilizer.scores": torch.ones(3)}
    stored = classifier | {f"net.net.{key}": tensor for key, tensor in state.items()}
    torch.save({"nsr_settings": {"seed": 0}, "state_dict": stored, "epoch": 3}, tmp_path / "best.ckpt")
    net = make_net()
    load_state_dict_file(net, tmp_path / "best.ckpt")
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    torch.save({"nsr_settings": {}, "state_dict": classifier}, tmp_path / "none.ckpt")
    assert "holds no weights under 'state_dict.net.net.'" in refused(net, tmp_path / "none.ckpt")


def test_constants_of_a_file_are_named_in_the_form_to_paste(state, tmp_path, caplog) -> None:
    stored = {"normalize.std": torch.tensor([0.3765]), "normalize.mean": torch.tensor([0.3057])}  # as safetensors may
    torch.save(stored | {f"net.{key}": tensor for key, tensor in state.items()}, tmp_path / "weights.pt")
    load_state_dict_file(make_net(), tmp_path / "weights.pt")
    assert "model.normalization='{mean: [0.3057], std: [0.3765]}'" in caplog.text
    caplog.clear()
    run = {f"net.{key}": tensor for key, tensor in stored.items()}  # of a run they are loaded
    run |= {f"net.net.{key}": tensor for key, tensor in state.items()}
    torch.save({"nsr_settings": {}, "state_dict": run}, tmp_path / "best.ckpt")
    load_state_dict_file(make_net(), tmp_path / "best.ckpt")
    assert "normalization" not in caplog.text


def test_does_without_the_batch_counter_old_files_lack(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["bn.num_batches_tracked"]
    torch.save(state, tmp_path / "old.pt")
    net = make_net()
    load_state_dict_file(net, tmp_path / "old.pt")
    assert torch.equal(net.state_dict()["fc1.weight"], state["fc1.weight"])


def test_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nothing.pt"
    assert refused(make_net(), path) == f"cannot open '{path}': No such file or directory"
    monkeypatch.chdir(tmp_path)
    expected = f"cannot open 'nothing.pt': No such file or directory (relative paths start at '{tmp_path}')"
    assert refused(make_net(), "nothing.pt") == expected
    assert refused(make_net(), 3) == "a checkpoint's path is 3; it must be text"
    assert refused(make_net(), tmp_path) == f"cannot open '{tmp_path}': Is a directory"
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    assert refused(make_net(), tmp_path).endswith(f"a run directory, whose best checkpoint is '{best}'")
    assert refused(make_net(), "/two\nlines.pt") == r"cannot open '/two\nlines.pt': No such file or directory"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.99])
def test_truncated_file(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"fc1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert refused(make_net(), path) == f"{str(path)!r} is cut short or no checkpoint that torch.save wrote"
    for content in (b"hello\n", b"\x89PNG\r\n\x1a\n0000", b"PK\x03\x04", b"\x80"):
        path.write_bytes(content)
        assert "checkpoint that torch.save wrote" in refused(make_net(), path)


class Malicious:
    """Unpickling it creates a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False])
def test_file_that_would_run_code_is_refused(state: dict[str, Tensor], tmp_path: Path, zipped: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "weights.pt"
    torch.save({**state, "extra": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
    message = refused(make_net(), path)
    assert message == (
        f"refused to read {str(path)!r}: it holds {os.mkdir.__module__}.mkdir, which could run code when loaded; "
        "save a plain state_dict instead"
    )
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"fc1.weight": Malicious(victim)}, protocol=protocol))
        assert str(tmp_path) in refused(make_net(), tmp_path / "weights.pkl")
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # the file is malicious indeed


FULL = make_net().state_dict()
RENAMED = {key.replace("fc2", "head"): tensor for key, tensor in FULL.items()}
MORE = FULL | {f"extra{number}": torch.ones(1) for number in range(4)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds no state_dict, a mapping of names to tensors, but an object of type Tensor"),
        ({}, "to tensors, but an empty mapping"),
        ({"state_dict": {}}, "to tensors, but a mapping with the keys 'state_dict'"),
        ({"epoch": 3, "lr": 0.1}, "to tensors, but a mapping with the keys 'epoch', 'lr'"),
        (dict.fromkeys("abcde", 1.0), "to tensors, but a mapping with the keys 'a', 'b', 'c' (2 more)"),
        ({1: torch.ones(2)}, "to tensors, but a mapping with the keys 1"),
        (RENAMED, "does not fit Sequential: it lacks 'fc2.weight', 'fc2.bias'; it has unknown 'head.weight',"),
        ({"fc1.weight": FULL["fc1.weight"]}, "it lacks 'fc1.bias', 'bn.weight', 'bn.bias' (4 more); another model or"),
        (MORE, "it has unknown 'extra0', 'extra1', 'extra2' (1 more); another model or variant?"),
        (make_net(hidden=4).state_dict(), "fc1.weight must have shape (3, 2), but has (4, 2) in the file; another"),
        (FULL | {"fc2.weight": torch.ones(2, 3, device="meta")}, "holds fc2.weight as a sparse, quantized or meta"),
        (FULL | {"fc2.weight": torch.ones(2, 3).to_sparse()}, "holds fc2.weight as a sparse, quantized or meta tensor"),
    ],
)
def test_content_that_does_not_fit(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    text = refused(make_net(), path)
    assert message in text and repr(str(path)) in text
