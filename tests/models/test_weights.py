"""Weight files: what fits is loaded bit by bit, what does not is told in one line and leaves the net as it was."""

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.models.weights import load_state_dict_file, read_checkpoint


def make_net(hidden: int = 3) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(fc1=nn.Linear(2, hidden), bn=nn.BatchNorm1d(hidden), relu=nn.ReLU(), fc2=nn.Linear(hidden, 2))
    )


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


def refused_content(content: object, tmp_path: Path, net: nn.Module | None = None) -> str:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    message = refused(net or make_net(), path)
    assert repr(str(path)) in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_what_fits(
    state: dict[str, Tensor], tmp_path: Path, prefix: str, wrapper: str | None, zipped: bool
) -> None:
    stored: Any = OrderedDict((prefix + key, tensor) for key, tensor in state.items())
    path = tmp_path / "weights.pt"
    torch.save({wrapper: stored, "epoch": 3} if wrapper else stored, path, _use_new_zipfile_serialization=zipped)
    net = make_net()
    load_state_dict_file(net, str(path))
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def test_does_without_the_batch_counter_old_files_lack(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["bn.num_batches_tracked"]
    torch.save(state, tmp_path / "old.pt")
    net = make_net()
    load_state_dict_file(net, tmp_path / "old.pt")
    assert torch.equal(net.state_dict()["fc1.weight"], state["fc1.weight"])


def test_loads_into_the_dtype_of_the_net(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pt")
    net = make_net().double()
    load_state_dict_file(net, tmp_path / "weights.pt")
    assert torch.equal(net.state_dict()["fc1.weight"], state["fc1.weight"].double())


def test_read_checkpoint_gives_what_was_saved(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "callbacks": {"best": [0.5, None]}, "state_dict": {"a": torch.ones(2)}}, tmp_path / "a.pt")
    content = read_checkpoint(tmp_path / "a.pt")
    assert content["callbacks"] == {"best": [0.5, None]}
    assert torch.equal(content["state_dict"]["a"], torch.ones(2))


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nothing.pt"
    assert refused(make_net(), path) == f"cannot open '{path}': No such file or directory"
    monkeypatch.chdir(tmp_path)
    expected = f"cannot open 'nothing.pt': No such file or directory (relative paths start at '{tmp_path}')"
    assert refused(make_net(), "nothing.pt") == expected
    assert refused(make_net(), "/two\nlines.pt") == r"cannot open '/two\nlines.pt': No such file or directory"


def test_directory(tmp_path: Path) -> None:
    assert refused(make_net(), tmp_path) == f"cannot open '{tmp_path}': Is a directory"


@pytest.mark.parametrize("path", [3, True, None])
def test_path_that_is_none(path: object) -> None:
    assert refused(make_net(), path) == f"a checkpoint's path is {path}; it must be text"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.02, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"fc1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert refused(make_net(), path) == f"{str(path)!r} is cut short or no checkpoint that torch.save wrote"


@pytest.mark.parametrize("content", [b"hello\n", b"\x89PNG\r\n\x1a\n0000", b"PK\x03\x04", b"\x80"])
def test_other_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert re.search("no checkpoint that torch.save wrote", refused(make_net(), path))


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
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # the file is malicious indeed


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    victim, path = tmp_path / "victim", tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"fc1.weight": Malicious(victim)}, protocol=protocol))
    assert str(path) in refused(make_net(), path)
    assert not victim.exists()


def test_pickled_network_is_refused(tmp_path: Path) -> None:
    message = refused_content(make_net(), tmp_path)
    assert "it holds torch.nn.modules.container.Sequential, which could run code when loaded" in message


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ([1, 2], "an object of type list"),
        (torch.ones(2), "an object of type Tensor"),
        ({}, "an empty mapping"),
        ({"state_dict": {}}, "an empty mapping"),
        ({"epoch": 3, "lr": 0.1}, "a mapping with the keys 'epoch', 'lr'"),
        (dict.fromkeys("abcde", 1.0), "a mapping with the keys 'a', 'b', 'c' (2 more)"),
        ({1: torch.ones(2)}, "a mapping with the keys 1"),
    ],
)
def test_content_that_is_no_state_dict(content: object, described: str, tmp_path: Path) -> None:
    message = refused_content(content, tmp_path)
    assert message.endswith(f"holds no state_dict, a mapping of names to tensors, but {described}")


def test_keys_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {key.replace("fc2", "head"): tensor for key, tensor in state.items()}
    assert refused_content(renamed, tmp_path).endswith(
        "does not fit Sequential: it lacks 'fc2.weight', 'fc2.bias'; it has unknown 'head.weight', 'head.bias'; "
        "another model or variant?"
    )
    assert refused_content({"fc1.weight": state["fc1.weight"]}, tmp_path).endswith(
        "does not fit Sequential: it lacks 'fc1.bias', 'bn.weight', 'bn.bias' (4 more); another model or variant?"
    )
    unknown = {**state, **{f"extra{number}": torch.ones(1) for number in range(4)}}
    assert refused_content(unknown, tmp_path).endswith(
        "does not fit Sequential: it has unknown 'extra0', 'extra1', 'extra2' (1 more); another model or variant?"
    )


def test_shapes_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    assert refused_content(state, tmp_path, make_net(hidden=4)).endswith(
        "does not fit Sequential: fc1.weight must have shape (4, 2), but has (3, 2) in the file; "
        "another model, variant, or number of classes?"
    )


@pytest.mark.parametrize("convert", [lambda tensor: tensor.to("meta"), lambda tensor: tensor.to_sparse()])
def test_tensors_without_dense_numbers(state: dict[str, Tensor], tmp_path: Path, convert: Any) -> None:
    state["fc2.weight"] = convert(state["fc2.weight"])
    assert refused_content(state, tmp_path).endswith(
        "holds fc2.weight as a sparse, quantised or meta tensor; it must be a dense one"
    )
