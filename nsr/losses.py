"""Losses of attacks and objectives as pure functions, one value per image, computed in float32 at least.

Logits are (batch, class), labels (batch,); each function returns (batch,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def precise(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, float32 where it is in half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y; for class probabilities (batch, class) as labels, minus their mean of log p."""
    logits = logits.to(precise(logits))
    labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max over k != y of z_k, minus z_y: above 0 exactly where the image is misclassified.

    The logit margin of Carlini and Wagner 2017 (f_6, with the sign of an attack that ascends and without their bound).
    """
    logits = logits.to(precise(logits))
    of_label = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - of_label[:, 0]


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) = sum over k of p_k (log p_k - log q_k), p of `logits` and q of `other`."""
    log_p, log_q = (F.log_softmax(each.to(precise(each)), dim=1) for each in (logits, other))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def kl_from_clean(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(p(x) || p(x')), the loss that TRADES' attack ascends (Zhang et al. 2019); its gradient is zero at x' = x."""
    return kl_divergence(clean_logits, logits)


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y - log(1 - max over k != y of p_k): Wang et al. 2020, equation 7.

    1 - p_k is the sum of the other probabilities: in this form the logarithm stays finite where p_k rounds to 1.
    """
    log_p = F.log_softmax(logits.to(precise(logits)), dim=1)
    rival = log_p.detach().scatter(1, labels[:, None], -torch.inf).argmax(1, keepdim=True)
    log_one_minus_rival = log_p.scatter(1, rival, -torch.inf).logsumexp(1)
    return -log_p.gather(1, labels[:, None])[:, 0] - log_one_minus_rival
