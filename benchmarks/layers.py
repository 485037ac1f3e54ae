"""Table of the layers hooked by default, and the axes of their outputs, in networks of torchvision and timm.

    python -m benchmarks.layers   # writes benchmarks/results/layers.csv and the table of docs/layers.md, some minutes

The weights are random ones of seed 0: layers and axes do not depend on them.
"""

from __future__ import annotations

import csv
import logging

import torch
from torch import nn

from benchmarks.common import DOCS, RESULTS, table
from nsr.layers import find_layers
from nsr.models import timm_model, torchvision_model

TABLE = RESULTS / "layers.csv"
HEADINGS = ("network", "image_size", "layers", "neurons", "axes", "first", "last", "logged")
TORCHVISION = (
    *("alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet"),
    *("inception_v3", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *("efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"),
    *("maxvit_t", "vit_b_32"),
)
TIMM = (
    *("resnet26", "resnetv2_50", "efficientnet_lite0", "mobilenetv4_conv_small", "ghostnet_100", "repvgg_a0"),
    *("nfnet_l0", "hrnet_w18_small", "dla34", "convnext_atto", "convmixer_768_32", "vit_tiny_patch16_224"),
    *("deit_tiny_patch16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "pvt_v2_b0"),
    *("mixer_s32_224", "gmlp_ti16_224", "mobilevit_xxs", "edgenext_xx_small", "levit_128s", "poolformer_s12"),
    *("coatnet_nano_rw_224",),
)
ARCHITECTURES = (*(f"torchvision.{name}" for name in TORCHVISION), *(f"timm.{name}" for name in TIMM))
SIZES = {"torchvision.inception_v3": 299, "torchvision.maxvit_t": 224}
LAYOUTS = {(0, 1): "(batch, neuron, ...)", (0, -1): "(batch, ..., neuron)", (1, -1): "(..., batch, neuron)"}


def network(name: str, image_size: int) -> nn.Module:
    """The network 'library.name' with random weights and 10 classes."""
    torch.manual_seed(0)
    library, _, name = name.partition(".")
    make = torchvision_model if library == "torchvision" else timm_model
    return make(name=name, channels=3, classes=10, image_size=image_size)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def row(name: str) -> list[object]:
    """The table's row of a network."""
    size, messages = SIZES.get(name, 224), _Lines()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    logging.getLogger("nsr").addHandler(messages)
    try:
        layers = find_layers(network(name, size), images)
    finally:
        logging.getLogger("nsr").removeHandler(messages)
    counts: dict[str, int] = {}
    for layer in layers:
        layout = LAYOUTS.get((layer.batch_dim, layer.neuron_dim), f"neuron on axis {layer.neuron_dim}")
        counts[layout] = counts.get(layout, 0) + 1
    axes = "; ".join(f"{count} {layout}" for layout, count in counts.items())
    ends = (f"{layer.name}: {layer.neurons}" for layer in (layers[0], layers[-1]))
    return [name, size, len(layers), sum(layer.neurons for layer in layers), axes, *ends, " | ".join(messages.lines)]


def main() -> None:
    """Write the table and the page's copy of it."""
    rows = []
    for name in ARCHITECTURES:
        rows.append([str(value) for value in row(name)])
        print(*rows[-1], sep="  ", flush=True)
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADINGS, *rows])
    page = DOCS / "layers.md"
    text, mark, _ = page.read_text().partition("<!-- table -->\n")
    shown = [[cell.replace("|", "/") for cell in cells] for cells in rows]
    page.write_text(text + mark + "\n".join(table(HEADINGS, shown)) + "\n")


if __name__ == "__main__":
    main()
