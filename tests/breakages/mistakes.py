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
OBJECTIVES = "tests/test_objectives.py"
FREE = "tests/test_free.py"
WEIGHT_PERTURBATION = "tests/test_weight_perturbation.py"

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
        "clean, adversarial = clean.to(precise), adversarial.to(precise)\n    others",
        "others",
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
        "self.activation = self.activation + activation\n        self.count = self.count + samples",
        "self.activation = self.activation + activation\n        self.count = self.count + 1",
        "tests/test_metrics.py",
    ),
    Mistake(
        "clean side detached",
        "nsr/stabilizer.py",
        "(clean[name] if self.gradient_through_clean else clean[name].detach(), adversarial[name])",
        "(clean[name].detach(), adversarial[name])",
        "tests/test_stabilizer.py",
    ),
    Mistake(
        "sum over the most sensitive neurons",
        "nsr/stabilizer.py",
        'movement.mean() if self.reduction == "mean" else movement.sum()',
        "movement.sum()",
        "tests/test_stabilizer.py",
    ),
    Mistake(
        "all neurons stabilised",
        "nsr/stabilizer.py",
        "movement = movement[most_sensitive(scores[name], self.top)]",
        "movement = movement[:]",
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
        "(self.images + _shortened(movement, self.epsilon))",
        "(self.images + movement)",
        ATTACKS,
    ),
    Mistake(
        "pixel range forgotten in L2",
        "nsr/attacks/balls.py",
        "(self.images + _shortened(movement, self.epsilon)).clamp_(0, 1)",
        "(self.images + _shortened(movement, self.epsilon))",
        ATTACKS,
    ),
    Mistake(
        "descent instead of ascent",
        "nsr/attacks/balls.py",
        "torch.add(adversarial, gradient.sign(), alpha=step_size)",
        "torch.add(adversarial, gradient.sign(), alpha=-step_size)",
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
        "        with full_precision(self.device):\n            self.suite",
        "        if True:\n            self.suite",
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
        "                    check_source(part, settings[part], source)\n",
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
    Mistake(
        "KL's arguments swapped",
        "nsr/losses.py",
        "return F.kl_div(log_q, log_p, reduction",
        "return F.kl_div(log_p, log_q, reduction",
        OBJECTIVES,
    ),
    Mistake(
        "TRADES' divergence not divided by the number of images",
        "nsr/objectives/trades.py",
        'kl_divergence(logits["clean"], logits["adversarial"]).mean()',
        'kl_divergence(logits["clean"], logits["adversarial"]).sum()',
        OBJECTIVES,
    ),
    Mistake(
        "TRADES' clean side detached",
        "nsr/objectives/trades.py",
        'kl_divergence(logits["clean"], logits',
        'kl_divergence(logits["clean"].detach(), logits',
        OBJECTIVES,
    ),
    Mistake(
        "MART's weight of the wrong images turned round",
        "nsr/objectives/mart.py",
        "wrong = 1 - F.softmax",
        "wrong = F.softmax",
        OBJECTIVES,
    ),
    Mistake(
        "MART's rival term with the other sign",
        "nsr/losses.py",
        "[:, 0] - log_one_minus_rival",
        "[:, 0] + log_one_minus_rival",
        OBJECTIVES,
    ),
    Mistake(
        "MART's rival is the strongest class, right or wrong",
        "nsr/losses.py",
        "log_p.detach().scatter(1, labels[:, None], -torch.inf).argmax(1, keepdim=True)",
        "log_p.detach().argmax(1, keepdim=True)",
        OBJECTIVES,
    ),
    Mistake(
        "logit pairing summed over classes",
        "nsr/objectives/logit_pairing.py",
        'F.mse_loss(logits["clean"], logits["adversarial"])',
        'F.mse_loss(logits["clean"], logits["adversarial"]) * logits["clean"].shape[1]',
        OBJECTIVES,
    ),
    Mistake(
        "label smoothing forgotten",
        "nsr/objectives/adversarial.py",
        "labels, label_smoothing=self.label_smoothing)",
        "labels)",
        OBJECTIVES,
    ),
    Mistake(
        "natural training on a sum",
        "nsr/objectives/natural.py",
        "labels, label_smoothing=self.label_smoothing)",
        'labels, reduction="sum", label_smoothing=self.label_smoothing)',
        OBJECTIVES,
    ),
    Mistake(
        "free training's perturbation descends",
        "nsr/attacks/balls.py",
        "torch.add(perturbation, gradient.sign(), alpha=step_size)",
        "torch.add(perturbation, gradient.sign(), alpha=-step_size)",
        FREE,
    ),
    Mistake(
        "free training's perturbation begins anew with each batch",
        "nsr/free.py",
        "        images, labels = self._begin(batch, batch_idx)\n",
        "        images, labels = self._begin(batch, batch_idx)\n        self.kept.perturbation = None\n",
        FREE,
    ),
    Mistake(
        "free training's perturbation not in the checkpoint",
        "nsr/free.py",
        'checkpoint["perturbations"] =',
        "_ =",
        FREE,
    ),
    Mistake(
        "AWP's weights not restored",
        "nsr/callbacks/weight_perturbation.py",
        "                weight.copy_(value)\n",
        "                pass\n",
        WEIGHT_PERTURBATION,
    ),
    Mistake(
        "AWP descends",
        "nsr/callbacks/weight_perturbation.py",
        "weight.add_(self.gamma *",
        "weight.add_(-self.gamma *",
        WEIGHT_PERTURBATION,
    ),
    Mistake(
        "AWP's passes feed BatchNorm",
        "nsr/callbacks/weight_perturbation.py",
        '        with batch_norm(net, "batch"):\n',
        "        if True:\n",
        WEIGHT_PERTURBATION,
    ),
    Mistake(
        "N-FGSM put back into the ball",
        "nsr/attacks/gradient.py",
        "epsilon if self.projection else inf",
        "epsilon",
        "tests/test_attack_variants.py",
    ),
    Mistake(
        "the last restart kept instead of the best",
        "nsr/attacks/gradient.py",
        "better = torch.where(fooled == self.fooled, losses > self.losses, fooled)",
        "better = torch.ones_like(fooled)",
        "tests/test_attack_variants.py",
    ),
    Mistake(
        "ensemble without the network that is trained",
        "nsr/attacks/ensemble.py",
        "torch.randint(len(self.networks) + 1, ())",
        "torch.randint(len(self.networks), ())",
        "tests/test_ensemble_and_kept.py",
    ),
    Mistake(
        "the first ones remembered for ever",
        "nsr/stabilizer.py",
        'if self.refresh == "epoch" or (',
        "if (",
        "tests/test_stabilizer_settings.py",
    ),
    Mistake(
        "a constant network goes on",
        "nsr/callbacks/collapse.py",
        "        if self.epochs == EPOCHS:\n",
        "        if False:\n",
        "tests/test_around_training.py",
    ),
    Mistake(
        "a damaged image told after the run directory is made",
        "nsr/rehearsal.py",
        "    data.rehearse(needed_splits(config))",
        "    needed_splits(config)",
        "tests/test_command_line.py",
    ),
]
