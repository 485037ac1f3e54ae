"""BatchNorm in eval mode folded into the convolution or linear layer before it, for the passes of an attack.

    gamma * (W x + b - mean) / sqrt(var + eps) + beta  =  (s W) x + s (b - mean) + beta,    s = gamma / sqrt(var + eps)

One operation instead of two (Jacob et al. 2018, section 3.2). torch.fx traces a copy of the network to find the pairs;
the passes still run the network's own code, in which only the two layers of a pair compute something else. So hooks,
control flow and every other layer are as written, and each pass decides again whether a pair may be folded. A compiled
pass takes the folded weights as inputs of its graph: it decides and folds before it, and new weights need no new graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from nsr.compat import is_compiled, is_hooked, tensor_version
from nsr.errors import RunStopped
from nsr.modes import network_mode, unchanged_buffers

CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FoldedPair:
    """A convolution or linear layer and the BatchNorm that alone takes its output; see `foldable_pairs`.

    Args:
        layer, norm: the two modules.
        watched: modules whose hooks would receive the output between them; while one is hooked, nothing is folded.
    """

    def __init__(self, layer: Any, norm: Any, watched: Sequence[nn.Module]):
        self.layer, self.norm, self.watched = layer, norm, list(watched)
        self.state: Any = None  # what the folded weight and bias were computed from
        self.weight = self.bias = self.output = None
        self.is_folded = False  # in this pass

    def forward_layer(self, inputs: Tensor) -> Tensor:
        """Compute the output of both layers, where the pair can be folded in this pass; else the layer's own."""
        self.check_taken()
        if not torch.compiler.is_compiling():
            self.prepare()
        # inputs without batch axis, or tokens, would be normalized along another axis
        if not self.is_folded or inputs.ndim != self.layer.weight.ndim:
            return type(self.layer).forward(self.layer, inputs)
        self.output = output = self._apply(inputs)
        return output

    def forward_norm(self, inputs: Tensor) -> Tensor:
        """Return the inputs where they are the output of both layers already; else normalize them."""
        if self.output is None:
            return type(self.norm).forward(self.norm, inputs)
        if self.output is inputs:
            self.output = None
        self.check_taken()
        return inputs

    def check_taken(self) -> None:
        """Raise RunStopped where the latest folded output did not go to the BatchNorm."""
        if self.output is not None:
            self.output = None
            raise RunStopped("a layer's output no longer goes to the BatchNorm after it; give performance=off")

    def prepare(self) -> None:
        """Decide whether the pair can be folded and fold it, where it is used: no graph of a compiler can do that."""
        norm = self.norm
        is_used = "forward" in vars(self.layer) and not norm.training and norm.running_mean is not None
        is_alike = getattr(norm.running_var, "dtype", None) == self.layer.weight.dtype
        self.is_folded = is_used and is_alike and not any(map(is_hooked, self.watched))
        if self.is_folded:
            self._fold()

    def forget(self) -> None:
        """Drop the folded tensors."""
        self.state = self.weight = self.bias = self.output = None

    def _fold(self) -> None:
        """Compute the folded weight and bias, where they are not those of the present tensors."""
        layer, norm = self.layer, self.norm
        tensors = (layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        dtype, device = _dtype_of_pass(layer.weight), layer.weight.device
        state = [dtype, *((id(each), tensor_version(each)) for each in tensors if each is not None)]
        if state == self.state:
            return
        wide = torch.float32 if device.type == "mps" else torch.float64
        with torch.no_grad():
            wider: list[Any] = [each if each is None else each.to(wide) for each in tensors[1:]]
            bias, gamma, beta, mean, variance = wider
            scale = torch.rsqrt(variance + norm.eps) * (1 if gamma is None else gamma)
            bias = (-mean if bias is None else bias - mean) * scale + (0 if beta is None else beta)
            factors = scale.to(layer.weight.dtype).view(-1, *[1] * (layer.weight.ndim - 1))
            self.weight = (layer.weight * factors).to(dtype)  # of millions of weights no wide copy
            self.bias = bias.to(dtype)
        self.state = state

    def _apply(self, inputs: Tensor) -> Any:
        layer = self.layer
        if type(layer) is nn.Linear:
            return functional.linear(inputs, self.weight, self.bias)  # type: ignore[arg-type]
        convolve = CONVOLUTIONS[type(layer)]
        return convolve(inputs, self.weight, self.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@contextmanager
def folded_batch_norm(pairs: Sequence[FoldedPair]) -> Iterator[None]:
    """Fold the pairs in passes inside whose BatchNorm is in eval mode; no pass inside gives gradients of their weights.

    The network's modules, parameters, buffers, hooks and flags are untouched; a weight that changes is folded again.

    Errors:
        RunStopped: an output that was folded is used elsewhere than in the graph that was traced.
    """
    try:
        for pair in pairs:
            pair.layer.forward, pair.norm.forward = pair.forward_layer, pair.forward_norm
        yield
        for pair in pairs:
            pair.check_taken()
    finally:
        for pair in pairs:
            for module in (pair.layer, pair.norm):
                vars(module).pop("forward", None)
            pair.forget()


def _dtype_of_pass(weight: Tensor) -> torch.dtype:
    """Return what a convolution computes in: in mixed precision cast here, once a step, and not in each pass."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def foldable_pairs(net: nn.Module, example: Tensor) -> list[FoldedPair]:
    """Find the convolutions and linear layers whose only use is in the BatchNorm after them.

    Only layers whose class is torch's own, not subclasses, with zero padding, without parametrization, called once in a
    pass. The children of a network that cannot be traced are traced one by one.

    Args:
        net: any module; it is left as it is.
        example: images (batch, channel, height, width) for a trial pass.

    Returns:
        the pairs; none where the trial pass in eval mode uses them otherwise than traced.
    """
    modules = dict(net.named_modules())
    if any(map(is_compiled, modules.values())):
        return []
    pairs = [_pair(modules, *names) for names in _traced_pairs(net, "")]
    try:
        with torch.no_grad(), unchanged_buffers(net), network_mode(net, "eval"), folded_batch_norm(pairs):
            net(example)
    except RunStopped:
        return []
    return pairs


def _pair(modules: dict[str, nn.Module], layer: str, norm: str) -> FoldedPair:
    """Make the pair of two names, watching the parents of one that are not the other's."""

    def lineage(name: str) -> set[str]:
        parts = name.split(".")
        return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}

    apart = lineage(layer) ^ lineage(norm)
    return FoldedPair(modules[layer], modules[norm], [modules[name] for name in sorted(apart)])


class _Tracer(fx.Tracer):
    """Traces without calling hooks, which might keep what they are given."""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        return m.forward(*args, **kwargs)


def _traced_pairs(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Return the names of the pairs in `module`, or, where it cannot be traced, in its children."""
    if not list(module.children()):
        return []
    try:
        # a copy with the same parameters, because a pass may write into attributes and buffers
        copied = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()}).eval()
        graph = _Tracer().trace(copied)
    except Exception:  # of any network
        children = module.named_children()
        return [pair for name, child in children for pair in _traced_pairs(child, f"{prefix}{name}.")]
    if any(_holds_proxy(value) for each in copied.modules() for value in vars(each).values()):
        return []  # the network keeps what it computes, for a use that no graph shows
    found = [(node.args[0], node) for node in graph.nodes if _is_pair(node, graph, copied)]
    return [(f"{prefix}{layer.target}", f"{prefix}{norm.target}") for layer, norm in found]


def _is_pair(node: fx.Node, graph: fx.Graph, root: nn.Module) -> bool:
    """Return whether the node is a BatchNorm that alone takes the output of a layer, both used once."""
    layer = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if node.op != "call_module" or not isinstance(layer, fx.Node) or layer.op != "call_module":
        return False
    names = (str(layer.target), str(node.target))
    used = [str(each.target) for each in graph.nodes if each.op in ("call_module", "get_attr")]
    is_single = all(sum(f"{name}.".startswith(f"{own}.") for name in used) == 1 for own in names)
    linear, norm = (root.get_submodule(name) for name in names)
    is_kind = type(linear) is nn.Linear or (type(linear) in CONVOLUTIONS and linear.padding_mode == "zeros")
    is_plain = type(norm) in BATCH_NORMS and not any("forward" in vars(each) for each in (linear, norm))
    return is_single and is_kind and is_plain and list(layer.users) == [node] and len(layer.args) == 1


def _holds_proxy(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_proxy, value.values()))
    return isinstance(value, fx.Proxy) or (isinstance(value, (list, tuple)) and any(map(_holds_proxy, value)))
