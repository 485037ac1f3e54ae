"""Two defences that are added to a trained network, each from its equation, for `model._target_`.

Both change ReLU modules of a network in place, so its weights keep their names. What they need of the training images
is measured again whenever weights are loaded; until then they are plain ReLUs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MeanSparseReLU(nn.ReLU):
    """ReLU of x where |x - mean_c| > alpha * std_c, else of mean_c: small deviations are removed from channel c.

    Source: Amini, Teymoorianfard, Ma, Houmansadr, MeanSparse, 2024, arXiv 2406.05927.

    Args:
        alpha: threshold in standard deviations of the channel over the training images.
        straight_through: the backward pass takes the step for the identity, so that attacks see through it (BPDA,
            Athalye, Carlini and Wagner 2018); the output is the same.
    """

    def __init__(self, alpha: float, straight_through: bool = False):
        super().__init__()
        self.alpha, self.straight_through = alpha, straight_through
        for name in ("mean", "std"):
            self.register_buffer(name, None, persistent=False)  # (neuron,) of the training images

    def forward(self, features: Tensor) -> Tensor:
        """(batch, neuron, ...) -> the same shape."""
        if self.mean is None:
            return F.relu(features)
        mean, std = (value.view(-1, *(1,) * (features.ndim - 2)) for value in (self.mean, self.std))
        sparse = torch.where((features - mean).abs() > self.alpha * std, features, mean)
        return F.relu(features + (sparse - features).detach() if self.straight_through else sparse)


def mean_sparse(network: nn.Module, data, alpha: float = 0.2, straight_through: bool = False) -> nn.Module:
    """Return `network` with MeanSparse in front of every ReLU."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    layers = {name: MeanSparseReLU(alpha, straight_through) for name in names}
    for name, layer in layers.items():
        network.set_submodule(name, layer)

    def measure(net: nn.Module, _) -> None:
        for layer in layers.values():
            layer.mean = layer.std = None
        for layer, found in inputs(net, layers, training_images(data)[0]).items():
            over = [axis for axis in range(found.ndim) if axis != 1]
            layers[layer].mean, layers[layer].std = found.mean(over), found.std(over)

    network.register_load_state_dict_post_hook(measure)
    return network


class ImportantNeuronsReLU(nn.ReLU):
    """ReLU that keeps the neurons that are important for the class that the network predicts without it.

    The second of two forward passes, with the neurons outside of the first class's most important ones set to zero. The
    layers below it are the same in both, so one pass and the head are enough.

    Source: Kulkarni and Weng, Interpretability-Guided Test-Time Adversarial Defense, ECCV 2024, arXiv 2409.15190
    (leave-one-out importance).
    """

    def __init__(self, head: nn.Module):
        super().__init__()
        self.above = (head,)  # a tuple: the head is no part of this module
        self.register_buffer("kept", None, persistent=False)  # (class, neuron), 1 or 0

    def forward(self, features: Tensor) -> Tensor:
        """(batch, neuron) -> the same shape."""
        hidden = F.relu(features)
        return hidden if self.kept is None else hidden * self.kept[self.above[0](hidden).argmax(1)]


def leave_one_out(head: nn.Module, hidden: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(class, neuron): mean fall of a class's logit on its own images when one neuron is set to zero."""
    rows, logits = torch.arange(len(labels)), head(hidden)
    falls = torch.stack(
        [
            (logits - head(hidden.index_fill(1, torch.tensor(neuron), 0)))[rows, labels]
            for neuron in range(hidden.shape[1])
        ],
        dim=1,
    )  # (image, neuron)
    return torch.stack([falls[labels == label].mean(0) for label in range(classes)])


def important_neurons(network: nn.Module, data, layer: str, head: str, fraction: float = 0.5) -> nn.Module:
    """Return `network` that keeps, in `layer` below the last linear layer `head`, a fraction of the neurons."""
    defence = ImportantNeuronsReLU(network.get_submodule(head))
    network.set_submodule(layer, defence)

    def measure(net: nn.Module, _) -> None:
        defence.kept = None
        images, labels = training_images(data)
        hidden = F.relu(inputs(net, [layer], images)[layer])
        with torch.no_grad():
            importance = leave_one_out(net.get_submodule(head), hidden, labels, int(labels.max()) + 1)
        best = importance.topk(round(fraction * importance.shape[1]), dim=1).indices
        defence.kept = torch.zeros_like(importance).scatter(1, best, 1.0)

    network.register_load_state_dict_post_hook(measure)
    return network


def training_images(data) -> tuple[Tensor, Tensor]:
    """Return the training images (image, channel, height, width), normalized as the network takes them, and labels."""
    data.setup("fit")
    images, labels = data.training_set.images, data.training_set.labels
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    return (images - mean) / std, labels


def inputs(network: nn.Module, layers, images: Tensor) -> dict[str, Tensor]:
    """Return {layer: its input} on the images, in eval mode."""
    found: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0]}))
        for name in layers
    ]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found
