"""Pre-activation networks in CIFAR form: WideResNet and PreActResNet, with the names of published state_dicts.

Sources: S. Zagoruyko, N. Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146; K. He, X. Zhang, S. Ren,
J. Sun, Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv 1603.05027; S. Gowal et al., Uncovering the Limits
of Adversarial Training against Norm-Bounded Adversarial Examples, 2020, arXiv 2010.03593 (DeepMind's variants). The
names are those of the code of TRADES, Rice et al. 2020 and DeepMind, which RobustBench's checkpoints have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from nsr.errors import InputError, check_choice, check_number
from nsr.models.activation import activation_builder
from nsr.models.networks import check_sizes, initialize_convolutions, mean_over_positions


class Layout(NamedTuple):
    """Names of a published network's modules, and its differences from the papers."""

    stem: str
    stages: str  # of the blocks of a stage, by its number
    first: int  # number of the first stage
    block: tuple[str, str, str, str, str, str, str]  # BatchNorm, activation, convolution, the same, shortcut
    norm: str | None  # the last BatchNorm; None: the network ends without it and its activation
    head: str
    shortcut_size: int = 1  # of the shortcut's convolution
    input_shortcut: bool = False  # a shortcut with a convolution starts before the block's first BatchNorm
    pads_after: bool = False  # TensorFlow's padding where the stride is 2


NAMES = ("bn1", "relu1", "conv1", "bn2", "relu2", "conv2")
DEEPMIND = ("batchnorm_0", "relu_0", "conv_0", "batchnorm_1", "relu_1", "conv_1")
TRADES = Layout("conv1", "block{}.layer", 1, (*NAMES, "convShortcut"), "bn1", "fc")
DEEPMIND_WIDE = Layout(
    "init_conv", "layer.{}.block", 0, (*DEEPMIND, "shortcut"), "batchnorm", "logits", pads_after=True
)
RICE = Layout("conv1", "layer{}", 1, (*NAMES, "shortcut.0"), "bn", "linear")
DEEPMIND_PREACT = Layout(
    "conv_2d",
    "layer_{}",
    0,
    (*DEEPMIND[:2], "conv_2d_1", *DEEPMIND[3:5], "conv_2d_2", "shortcut"),
    "batchnorm",
    "logits",
    shortcut_size=3,
    input_shortcut=True,
    pads_after=True,
)
PREACT = {"published": RICE, "input_shortcut": RICE._replace(input_shortcut=True)}
PREACT |= {"wong2020": RICE._replace(norm=None, input_shortcut=True), "deepmind": DEEPMIND_PREACT}


class PadAfterConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2, padded like TensorFlow's SAME: of one row and column, those at the end."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channel, height, width) -> (batch, channel, height / 2, width / 2), rounded up."""
        height, width = features.shape[-2:]
        return super().forward(functional.pad(features, (width % 2, 1, height % 2, 1)))


class PreActBlock(nn.Module):
    """BatchNorm, activation and 3x3 convolution, twice, around a shortcut; figure 4e of He et al., ECCV 2016.

    The shortcut has a convolution where the shape changes, which starts after the first activation.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, layout: Layout, make_activation: Any) -> None:
        super().__init__()
        self.layout = layout
        modules = [
            *(nn.BatchNorm2d(channels_in), make_activation(), self._convolution(channels_in, channels_out, stride, 3)),
            *(nn.BatchNorm2d(channels_out), make_activation(), self._convolution(channels_out, channels_out, 1, 3)),
        ]
        self.projects = stride != 1 or channels_in != channels_out
        if self.projects:
            modules.append(self._convolution(channels_in, channels_out, stride, layout.shortcut_size))
        for name, module in zip(layout.block, modules, strict=False):
            add_named(self, name, module)

    def _convolution(self, channels_in: int, channels_out: int, stride: int, size: int) -> nn.Module:
        pads_after = self.layout.pads_after and stride == 2 and size == 3
        kind, padding = (PadAfterConv2d, 0) if pads_after else (nn.Conv2d, size // 2)
        return kind(channels_in, channels_out, size, stride=stride, padding=padding, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height / stride, width / stride)."""
        norm1, activation1, convolution1, norm2, activation2, convolution2 = map(
            self.get_submodule, self.layout.block[:6]
        )
        activated = activation1(norm1(features))
        residual = convolution2(activation2(norm2(convolution1(activated))))
        if self.projects:
            features = self.get_submodule(self.layout.block[6])(features if self.layout.input_shortcut else activated)
        return residual + features


class PreActivationNet(nn.Module):
    """A 3x3 stem, stages of `PreActBlock`, BatchNorm, activation, global average pooling and a linear layer.

    Args:
        widths: channels of the stem and of each stage; every stage but the first halves the map.
        blocks: blocks in each stage.
        activation: see `activation_builder`.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        layout: Layout,
        activation: Any,
    ) -> None:
        super().__init__()
        make_activation = activation_builder(activation)
        self.layout = layout
        add_named(self, layout.stem, nn.Conv2d(channels, widths[0], 3, padding=1, bias=False))
        self.stages: list[str] = []  # called one after another
        for stage, count in enumerate(blocks):
            name = layout.stages.format(layout.first + stage)
            add_named(self, name, nn.Sequential())
            width, stride = widths[stage], 1 if stage == 0 else 2
            for _ in range(count):
                block = PreActBlock(width, widths[stage + 1], stride, layout, make_activation)
                self.get_submodule(name).append(block)  # type: ignore[operator]
                width, stride = widths[stage + 1], 1
            self.stages.append(name.partition(".")[0])
        self.stages = list(dict.fromkeys(self.stages))
        if layout.norm is not None:
            add_named(self, layout.norm, nn.BatchNorm2d(widths[-1]))
            self.relu = make_activation()
        add_named(self, layout.head, nn.Linear(widths[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> logits (batch, class)."""
        features = self.get_submodule(self.layout.stem)(images)
        for name in self.stages:
            features = self.get_submodule(name)(features)
        if self.layout.norm is not None:
            features = self.relu(self.get_submodule(self.layout.norm)(features))
        return self.get_submodule(self.layout.head)(mean_over_positions(features))


def add_named(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, inside `nn.Sequential`s that are made where they are missing."""
    first, _, rest = name.partition(".")
    if not rest:
        parent.add_module(first, module)
        return
    if first not in dict(parent.named_children()):
        parent.add_module(first, nn.Sequential())
    add_named(parent.get_submodule(first), rest, module)


class WideResNet(PreActivationNet):
    """WRN-depth-width; 36,479,194 parameters for 28-10, 46,160,474 for 34-10, 266,796,506 for 70-16.

    Args:
        depth: 6 n + 4 with n blocks in each of three stages.
        width: factor of the stages' 16, 32 and 64 channels.
        variant: 'published', with the names of TRADES' code, initialized as there; or 'deepmind', with the names and
            the padding of DeepMind's, whose networks have activation=silu, initialized as in Wang et al. 2023.
    Errors:
        InputError: a depth, width or variant that does not exist.
    """

    sub_block1 = None  # TRADES' checkpoints have weights under this name that no pass uses: not loaded

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        image_size: int = 32,
        depth: int = 28,
        width: int = 10,
        variant: str = "published",
        activation: Any = "relu",
    ) -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        check_number("width", width, lowest=1, whole=True)
        if check_number("depth", depth, lowest=10, whole=True) % 6 != 4:
            raise InputError(f"depth is {depth}; it must be 6 n + 4 for n blocks a stage, such as 28, 34 or 70")
        is_published = check_choice("variant", variant, ["published", "deepmind"]) == "published"
        super().__init__(
            channels,
            classes,
            widths=(16, 16 * width, 32 * width, 64 * width),
            blocks=3 * ((depth - 4) // 6,),
            layout=TRADES if is_published else DEEPMIND_WIDE,
            activation=activation,
        )
        initialize_convolutions(self)
        nn.init.zeros_(self.get_parameter(f"{self.layout.head}.bias"))


class PreActResNet(PreActivationNet):
    """PreActResNet-18 or 34: stages of 64, 128, 256 and 512 channels, initialized as torch does, like published code.

    Args:
        depth: 18 or 34.
        variant: 'published' as in He et al. and the code of Rice et al. 2020 (11,172,170 parameters for depth 18);
            'input_shortcut', whose shortcuts start before the first BatchNorm, as in the code of N-FGSM (as many);
            'wong2020', the same without the last BatchNorm (11,171,146); or 'deepmind', with 3x3 shortcuts before the
            first BatchNorm, used with activation=silu (12,548,426).
    Errors:
        InputError: a depth or variant that does not exist.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        image_size: int = 32,
        depth: int = 18,
        variant: str = "published",
        activation: Any = "relu",
    ) -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=8)
        blocks = (2, 2, 2, 2) if check_choice("depth", depth, (18, 34)) == 18 else (3, 4, 6, 3)
        layout = PREACT[check_choice("variant", variant, PREACT)]
        widths = (64, 64, 128, 256, 512)
        super().__init__(channels, classes, widths=widths, blocks=blocks, layout=layout, activation=activation)
