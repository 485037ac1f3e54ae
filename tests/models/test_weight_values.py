"""Values and bytes of weight files: not finite, of another kind, of another width, with a flipped bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nsr.errors import InputError
from nsr.models.weights import load_state_dict_file
from nsr.run.resumption import readable_checkpoint


class Net(nn.Module):
    """A parameter and a buffer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(200, 3), nn.BatchNorm1d(3)
        self.register_buffer("index", torch.arange(4, dtype=torch.int32))
        self.register_buffer("mask", torch.zeros(2, 2).masked_fill(torch.eye(2).bool(), -torch.inf))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("kept", torch.tensor([True, False]))


def saved(path: Path, **changes: torch.Tensor) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    state = {**Net().state_dict(), **{name.replace("__", "."): value for name, value in changes.items()}}
    torch.save(state, path)
    return path, state


def test_masks_counters_and_tables_are_loaded(tmp_path):
    path, state = saved(tmp_path / "a.pt", index=torch.arange(4, dtype=torch.int64))
    net = Net()
    load_state_dict_file(net, path)
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn__weight", torch.tensor([1, torch.nan, 1]), r"nan or inf in bn.weight"),
        ("bn__bias", torch.tensor([1, -torch.inf, 1]), r"nan or inf in bn.bias"),
        (
            "bn__bias",
            torch.full((3,), 1e300, dtype=torch.float64),
            r"bn.bias; weights must be finite numbers in float32",
        ),
        ("bn__bias", torch.ones(3, dtype=torch.int64), r"bn.bias as int64; Net needs floats, float32"),
        ("bn__bias", torch.ones(3, dtype=torch.bool), r"bn.bias as bool; Net needs floats"),
        ("bn__bias", torch.ones(3, dtype=torch.complex64), r"bn.bias as complex64; Net needs floats"),
        ("index", torch.ones(4), r"index as float32; Net needs integers, int32"),
        ("phase", torch.ones(2), r"phase as float32; Net needs complex numbers"),
        ("kept", torch.ones(2), r"kept as float32; Net needs bools"),
        ("bn__running_mean", torch.ones(3, dtype=torch.int64), r"bn.running_mean as int64; Net needs floats"),
    ],
)
def test_values_that_cannot_be_the_networks_are_refused(name, value, message, tmp_path):
    path, _ = saved(tmp_path / "a.pt", **{name: value})
    net = Net()
    before = {key: each.clone() for key, each in net.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_state_dict_file(net, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(each, before[key]) for key, each in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_converted_with_one_line(dtype, tmp_path, caplog):
    torch.manual_seed(0)
    state = {name: each.to(dtype) if each.is_floating_point() else each for name, each in Net().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    net = Net()
    load_state_dict_file(net, tmp_path / "a.pt")
    assert torch.equal(net.linear.weight, state["linear.weight"].float())
    assert [row.message for row in caplog.records] == [
        f"{str(tmp_path / 'a.pt')!r} holds weights in {str(dtype)[6:]}; they are converted to the network's type"
    ]


def flip(path: Path, value: torch.Tensor) -> None:
    """Flip one bit of the values in a file."""
    content, part = bytearray(path.read_bytes()), value.numpy().tobytes()
    content[content.index(part) + len(part) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_refused(tmp_path):
    path, state = saved(tmp_path / "a.pt")
    load_state_dict_file(Net(), path)
    flip(path, state["linear.weight"])
    torch.load(path)  # torch takes it
    with pytest.raises(InputError, match=r"a.pt' is damaged: .* does not have its checksum; copy it again"):
        load_state_dict_file(Net(), path)


def test_a_file_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        path, state = saved(tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    net = Net()
    load_state_dict_file(net, path)
    assert torch.equal(net.linear.weight, state["linear.weight"])


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert readable_checkpoint(tmp_path) is None
    paths = {name: tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous")}
    for path in paths.values():
        _, state = saved(path)
    for broken, expected in ((None, "last"), ("last", "previous")):
        if broken is not None:
            flip(paths[broken], state["linear.weight"])
        assert readable_checkpoint(tmp_path) == paths[expected]
    flip(paths["previous"], state["linear.weight"])
    with pytest.raises(
        InputError, match=r"cannot be resumed: last.ckpt and previous.ckpt damaged or cut short; restore"
    ):
        readable_checkpoint(tmp_path)
