"""Deliberate mistakes: what is replaced, in which file, and the tests that have to notice."""

from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    """One replacement of `right`, which stands exactly once in `file`, by `wrong`."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


SENSITIVITY = "tests/test_sensitivity.py"
ATTACKS = "tests/test_attacks.py"
FEATURES = "tests/test_features.py"
TRAINING = "tests/test_training.py"

MISTAKES = [
    Mistake(
        "mean over the dimensions of a neuron dropped",
        "nsr/sensitivity.py",
        "movement = (clean - adversarial).abs().sum(others, dtype=dtype) / values",
        "movement = (clean - adversarial).abs().sum(others, dtype=dtype)",
        SENSITIVITY,
    ),
    Mistake(
        "movement without absolute value",
        "nsr/sensitivity.py",
        "(clean - adversarial).abs().sum(",
        "(clean - adversarial).sum(",
        SENSITIVITY,
    ),
    Mistake(
        "relative to the number of samples",
        "nsr/sensitivity.py",
        "return sums.movement / activation",
        "return sums.movement / sums.samples",
        SENSITIVITY,
    ),
    Mistake(
        "half precision differences",
        "nsr/sensitivity.py",
        "precise = torch.promote_types(clean.dtype, torch.float32)",
        "precise = clean.dtype",
        SENSITIVITY,
    ),
    Mistake("least sensitive first", "nsr/sensitivity.py", "descending=True", "descending=False", SENSITIVITY),
    Mistake(
        "ids of the most sensitive neurons lost",
        "nsr/sensitivity.py",
        ".indices[:count]",
        ".indices[:count].sort().values",
        SENSITIVITY,
    ),
    Mistake(
        "a neuron on a bin's edge counted in the bin below",
        "nsr/sensitivity.py",
        "torch.searchsorted(edges, values, right=True)",
        "torch.searchsorted(edges, values, right=False)",
        SENSITIVITY,
    ),
    Mistake(
        "sums averaged over batches",
        "nsr/metrics.py",
        "        self.count = self.count + sums.samples",
        "        self.count = self.count + 1",
        "tests/test_metrics.py",
    ),
    Mistake(
        "sums of a network averaged over batches",
        "nsr/metrics.py",
        "self.count = self.count + sums[0].samples",
        "self.count = self.count + 1",
        "tests/test_metrics.py",
    ),
    Mistake(
        "clean side detached",
        "nsr/stabilizer.py",
        "clean = clean if self.gradient_through_clean else clean.detach()",
        "clean = clean.detach()",
        "tests/test_stabilizer.py",
    ),
    Mistake(
        "sum over the most sensitive neurons",
        "nsr/stabilizer.py",
        "[most_sensitive(sensitivity, self.top)].mean()",
        "[most_sensitive(sensitivity, self.top)].sum()",
        "tests/test_stabilizer.py",
    ),
    Mistake(
        "all neurons stabilised",
        "nsr/stabilizer.py",
        "[most_sensitive(sensitivity, self.top)].mean()",
        ".mean()",
        "tests/test_stabilizer.py",
    ),
    Mistake(
        "projection onto the L-infinity ball removed",
        "nsr/attacks/balls.py",
        "return adversarial.clamp_(self.lowest, self.highest)",
        "return adversarial.clamp_(0, 1)",
        ATTACKS,
    ),
    Mistake(
        "projection onto the L2 ball removed",
        "nsr/attacks/balls.py",
        "(self.images + movement * shrink)",
        "(self.images + movement)",
        ATTACKS,
    ),
    Mistake(
        "pixel range forgotten in L2",
        "nsr/attacks/balls.py",
        "(self.images + movement * shrink).clamp_(0, 1)",
        "(self.images + movement * shrink)",
        ATTACKS,
    ),
    Mistake(
        "descent instead of ascent",
        "nsr/attacks/balls.py",
        "gradient.sign(), alpha=step_size",
        "gradient.sign(), alpha=-step_size",
        ATTACKS,
    ),
    Mistake(
        "generator ignored",
        "nsr/attacks/balls.py",
        "noise = torch.rand(self.images.shape, generator=generator,",
        "noise = torch.rand(self.images.shape, generator=None,",
        ATTACKS,
    ),
    Mistake(
        "backward through the parameters",
        "nsr/attacks/gradient.py",
        'with in_training, network_mode(net, self.mode), batch_norm(net, "batch"), frozen_parameters(net):',
        'with in_training, network_mode(net, self.mode), batch_norm(net, "batch"):',
        ATTACKS,
    ),
    Mistake(
        "modes not restored",
        "nsr/modes.py",
        "            module.training = training\n",
        "            pass\n",
        "tests/test_modes.py",
    ),
    Mistake(
        "attack in train mode moves other buffers",
        "nsr/attacks/gradient.py",
        'in_training = unchanged_buffers(net) if self.mode == "train" else nullcontext()',
        "in_training = nullcontext()",
        ATTACKS,
    ),
    Mistake(
        "BatchNorm fed by the stabiliser's pass",
        "nsr/training.py",
        "with batch_norm(self.net, self.stabilizer.batch_norm), torch.set_grad_enabled(needs_gradient):",
        "with torch.set_grad_enabled(needs_gradient):",
        TRAINING,
    ),
    Mistake(
        "stabiliser's pass before the objective's draws",
        "nsr/training.py",
        "torch.manual_seed(draw_seed(self.seed, 0, self.current_epoch, batch_idx, self.global_rank))",
        "pass",
        TRAINING,
    ),
    Mistake(
        "a later broken loss told in place of the first",
        "nsr/training.py",
        "self.not_finite = torch.minimum(self.not_finite, step)",
        "self.not_finite = step",
        TRAINING,
    ),
    Mistake(
        "evaluation in the training's precision",
        "nsr/training.py",
        "        with full_precision(self.device):\n",
        "        if True:\n",
        "tests/test_runs.py",
    ),
    Mistake(
        "repeated batches counted",
        "nsr/data/batches.py",
        "return self.rank + batch_idx * self.world_size >= self.batches",
        "return False",
        "tests/data/test_batches.py",
    ),
    Mistake(
        "validation images trained on",
        "nsr/data/module.py",
        "self.training_set, self.validation_set = images.subset(kept), images.subset(held_out)",
        "self.training_set, self.validation_set = images, images.subset(held_out)",
        "tests/data",
    ),
    Mistake(
        "an in-place operation reaches the tap",
        "nsr/features.py",
        "value.clone() if self.copied is None or self.copied[call] else value",
        "value",
        FEATURES,
    ),
    Mistake(
        "the second call of a module overwrites the first",
        "nsr/features.py",
        'entry = self.name if call == 1 else f"{self.name}#{call}"',
        "entry = self.name",
        FEATURES,
    ),
    Mistake(
        "hooks stay",
        "nsr/features.py",
        "        for handle in handles:\n            handle.remove()\n        if compiled:",
        "        if compiled:",
        FEATURES,
    ),
    Mistake(
        "epochs counted from 0",
        "nsr/callbacks/sensitivity.py",
        "trainer.current_epoch + 1",
        "trainer.current_epoch",
        "tests/test_runs.py",
    ),
    Mistake(
        "histogram of another figure",
        "nsr/dashboards/wandb.py",
        "sensitivity_histogram(figures.absolute)",
        "sensitivity_histogram(figures.mean_activation)",
        "tests/test_dashboards.py",
    ),
    Mistake(
        "epsilon in units of 0 to 255 accepted",
        "nsr/errors.py",
        "            highest=diameter,\n",
        "",
        "tests/test_configuration.py",
    ),
    Mistake(
        "a checkpoint may run code",
        "nsr/models/weights.py",
        "weights_only=True",
        "weights_only=False",
        "tests/models/test_weights.py",
    ),
    Mistake(
        "a checkpoint may name any class",
        "nsr/checkpoints.py",
        "                    _check_source(part, settings[part], source)\n",
        "",
        "tests/test_command_line.py",
    ),
    Mistake(
        "torch loaded before the settings are checked",
        "nsr/configuration.py",
        "from nsr.errors import (",
        "import torch  # noqa: F401\nfrom nsr.errors import (",
        "tests/test_command_line.py",
    ),
]
