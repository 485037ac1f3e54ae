"""Plots: the page of snippets runs, and the figures hold the numbers that they were given."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
import torch
from made_runs import make_run

from nsr import plots
from nsr.plots.style import rounded

PAGE = (Path(__file__).parent.parent / "docs" / "plots.md").read_text()


@pytest.fixture(scope="module")
def documented(tmp_path_factory) -> dict:
    """The names that the snippets of the page leave, and the figures that they return."""
    run = make_run(tmp_path_factory.mktemp("plots") / "run")
    layers = [(epoch, layer, 1 + epoch, 0.1, 0.5, "0 1") for epoch in range(3) for layer in ("relu1", "relu2")]
    columns = ["epoch", "layer", "absolute", "relative", "overlap_previous", "most_sensitive"]
    pandas.DataFrame(layers, columns=columns).to_csv(run / "layers.csv", index=False)
    epochs = pandas.read_csv(run / "metrics.csv")
    epochs.assign(learning_rate=0.1, **{"train/loss": 1.0}).to_csv(run / "metrics.csv", index=False)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(code.replace('"runs/NAME/DATE_TIME"', repr(str(run))), "docs/plots.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_page_has_every_function_and_its_snippets_run(documented):
    assert set(plots.__all__) <= set(re.findall(r"plots\.(\w+)\(", PAGE))
    assert documented["moved"].shape[0] == 4


def test_plots_load_matplotlib_when_one_is_drawn():
    code = "import nsr, sys; nsr.plots.examples; print({'matplotlib', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_examples_show_predictions_and_the_amplified_difference():
    clean = numpy.full((5, 3, 2, 2), 0.5)
    adversarial = clean.copy()
    adversarial[2, :, 0, 1] += 0.1
    certain = numpy.eye(3)[[0, 1, 2, 0, 1]] * 0.7 + 0.1
    fooled = numpy.eye(3)[[0, 1, 0, 0, 1]] * 0.4 + 0.2
    labels = torch.tensor([0, 1, 2, 0, 1])
    probabilities = {"clean_probabilities": certain, "adversarial_probabilities": fooled}
    figure = plots.examples(
        clean,
        adversarial,
        labels=labels,
        class_names=["$a$", "b", "c"],
        groups=["held"] * 2 + ["fell"] * 3,
        **probabilities,
    )
    shown = texts(figure)
    assert shown.count("$a$ ✗\n60 %") == 1 and "c\n80 %" in shown and "held" in shown and "fell" in shown
    assert "difference\n× 5" in shown
    pictures = [image.get_array() for image in figure.axes[0].images]
    assert len(pictures) == 15 and all(image.get_interpolation() == "antialiased" for image in figure.axes[0].images)
    differences = [values for values in pictures if values.max() > 0.99]
    assert len(differences) == 1 and differences[0][0, 1].tolist() == pytest.approx([1, 1, 1])  # 0.5 + 5 * 0.1


def test_a_heat_map_is_scaled_layer_by_layer():
    frame = pandas.DataFrame({"layer": ["a", "b"] * 2, "epoch": [0, 0, 1, 1], "absolute": [1.0, 300.0, 2.0, 100.0]})
    figure = plots.sensitivity_heat_map(frame)
    assert figure.axes[0].images[0].get_array().tolist() == [[0.5, 1.0], [1.0, pytest.approx(1 / 3)]]
    assert texts(figure)[:2] == ["2", "300"]
    nothing = frame.assign(absolute=0.0)
    assert plots.sensitivity_heat_map(nothing).axes[0].images[0].get_array().max() == 0


def test_a_confusion_matrix_is_in_percent_of_each_class():
    figure = plots.confusion_matrix(torch.tensor([5, 5, 5, 5, 7]), [5, 5, 5, 9, 7], class_names={5: "five"})
    assert figure.axes[0].images[0].get_array().tolist() == [[75, 0, 25], [0, 100, 0], [0, 0, 0]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["five", "7", "9"]


def test_a_landscape_marks_the_images_and_what_is_misclassified():
    losses = torch.arange(9.0).view(1, 3, 3)
    figure = plots.landscape(losses, correct=losses < 7.5)
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == losses[0].tolist() and axes.images[0].origin == "lower"
    wrong, clean, adversarial = ([line.get_xdata()[0], line.get_ydata()[0]] for line in axes.lines)
    assert (wrong, clean, adversarial) == ([1, 1], [0, 0], [1, 0])
    assert axes.get_title() == "loss 0 to 8"
    steps = plots.landscape(10 ** losses[:, :, 1:], logarithmic=True).axes[0].images[0].get_array()
    assert (steps[:, 1] - steps[:, 0]).tolist() == pytest.approx([math.log(10)] * 3)
    assert math.isfinite(plots.landscape(0 * losses, logarithmic=True).axes[0].images[0].get_array().min())


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_of_any_channels_and_one_of_each(channels):
    image = torch.rand(1, channels, 4, 4)
    ones = torch.ones(1, 1)
    plots.examples(image, image, labels=[0], clean_probabilities=ones, adversarial_probabilities=ones)
    plots.attack_steps(image, ones, label=0)
    plots.top_images([image], names=["0 3"], values=[[1.0]], boxes=[[None]])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(4110.3, 3, "4,110"), (4110.3, 4, "4110"), (268000, 3, "268,000"), (0.00012, 3, "0.00012"), (3e9, 3, "3e+09")],
)
def test_a_number_of_a_picture_has_no_exponent_where_digits_are_shorter(value, digits, text):
    assert rounded(value, digits) == text


@pytest.mark.parametrize(("of", "shown"), [("accuracy", "robust, training"), ("loss", "loss")])
def test_one_epoch_is_a_visible_point_between_whole_ticks(of, shown):
    columns = {"train/robust_accuracy": [math.nan, 0.3], "train/loss": [math.nan, 2.0]}
    axes = plots.training_curves(pandas.DataFrame({"epoch": [0, 1], **columns}), of=of, best_epoch=1).axes[0]
    (line,) = (line for line in axes.lines if line.get_label() == shown)
    assert line.get_marker() not in ("", "None")
    low, high = axes.get_xlim()
    assert low < 0 < 1 < high
    assert all(tick == round(tick) for tick in axes.get_xticks())
