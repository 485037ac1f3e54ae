"""Every private attribute of another library that nsr.compat touches is still there; each test fails by its name."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from nsr import compat

ROOT = Path(__file__).parents[1]


def test_hydra_argument_parser():
    assert {"--config-dir", "--multirun", "--cfg"} <= set(compat.hydra_argument_parser()._option_string_actions)


def test_start_processes_with():
    from pytorch_lightning.strategies.launchers import subprocess_script

    source = inspect.getsource(subprocess_script)
    assert "_hydra_subprocess_cmd(local_rank" in source
    assert "_launch_process_observer(self.procs)" in source


def test_lightnings_signals_and_loader_states():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert callable(trainer.fit_loop._load_combined_loader_states)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)
    compat.leave_signals_alone(trainer)
    compat.broadcast_no_signals(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


def test_compilation_in_place():
    net, calls = nn.Linear(2, 2), []

    def watched(compiled, as_written):
        return lambda inputs: calls.append(1) or as_written(inputs)

    compat.compile_call(net, watched, backend="eager")
    assert net._compiled_call_impl is not None
    net(torch.zeros(1, 2))
    compat.drop_compiled_call(net)
    net(torch.zeros(1, 2))
    assert calls == [1]
    assert net._compiled_call_impl is None
    limit = compat.set_recompile_limit(17)
    assert compat.set_recompile_limit(limit) == 17
    assert issubclass(compat.compiler_error(), Exception)


def test_tensor_version_counts_writes_in_place():
    tensor = torch.zeros(2)
    before = compat.tensor_version(tensor)
    tensor.add_(1)
    assert compat.tensor_version(tensor) == before + 1


PRIVATE = re.compile(r"^_[a-z]\w*[a-z0-9]$")  # not Hydra's _target_


@pytest.mark.parametrize("path", sorted((ROOT / "nsr").rglob("*.py")), ids=lambda path: path.stem)
def test_no_other_file_touches_a_private_attribute_of_a_foreign_object(path):
    """`object._name` stands for something of our own everywhere but in compat.py: of self, of a class of the file."""
    if path.name == "compat.py":
        return
    tree = ast.parse(path.read_text())
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {"_asdict", "_fields", "_replace"}  # public, of named tuples
    foreign = [
        f"{ast.unparse(node)} (line {node.lineno})"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr) and node.attr not in own
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert foreign == []


def test_hooks_and_compilation_are_seen():
    net = nn.Linear(2, 2)
    assert not compat.is_hooked(net)
    assert not compat.is_compiled(net)
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        handle = getattr(net, f"register_{register}")(lambda *_: None)
        assert compat.is_hooked(net)
        handle.remove()
    assert not compat.is_hooked(net)
    assert compat.is_compiled(torch.compile(net, backend="eager"))
    net.compile(backend="eager")
    assert compat.is_compiled(net)
