"""The losses of attacks and objectives against the equations in Python's floats, gradients included."""

from __future__ import annotations

import math

import pytest
import torch

from nsr.losses import boosted_cross_entropy, cross_entropy, kl_divergence, margin, precise


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def rival_of(row, label):
    """The largest class but the label, the first of equal ones."""
    return max((k for k in range(len(row)) if k != label), key=lambda k: row[k])


def slow_cross_entropy(row, label):
    p = softmax(row)
    return -math.log(p[label]), [p[k] - (k == label) for k in range(len(row))]


def slow_margin(row, label):
    rival = rival_of(row, label)
    return row[rival] - row[label], [float(k == rival) - float(k == label) for k in range(len(row))]


def slow_boosted_cross_entropy(row, label):
    """-log p_y - log(1 - p_r); the second has the gradient p_r / (1 - p_r) * ([k = r] - p_k)."""
    p, rival = softmax(row), rival_of(row, label)
    value, gradient = slow_cross_entropy(row, label)
    odds = p[rival] / (1 - p[rival])
    return value - math.log(1 - p[rival]), [gradient[k] + odds * ((k == rival) - p[k]) for k in range(len(row))]


def slow_kl_divergence(row, other):
    """sum_k p_k log(p_k / q_k), its gradient in the logits of p and the one in the logits of q."""
    p, q = softmax(row), softmax(other)
    value = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    of_p = [a * (math.log(a / b) - value) for a, b in zip(p, q, strict=True)]
    return value, of_p, [b - a for a, b in zip(p, q, strict=True)]


OF_LABELS = {cross_entropy: slow_cross_entropy, margin: slow_margin, boosted_cross_entropy: slow_boosted_cross_entropy}
by_name = pytest.mark.parametrize("loss", OF_LABELS, ids=lambda loss: loss.__name__)


def some_logits(classes, *, scale=1.0, count=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance)


@by_name
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_a_loss_of_labels_is_its_equation(loss, classes, scale):
    logits, labels = some_logits(classes, scale=scale)
    by_hand = [OF_LABELS[loss](row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    got = loss(logits, labels)
    assert got.shape == (7,)
    close(got, [value for value, _ in by_hand])
    weights = torch.arange(1.0, 8, dtype=torch.float64)  # each image's gradient is its own
    (gradient,) = torch.autograd.grad((weights * got).sum(), logits)
    close(gradient / weights[:, None], [row for _, row in by_hand])


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_divergence_is_its_equation_in_this_order(classes, scale):
    (logits, _), (other, _) = some_logits(classes, scale=scale), some_logits(classes, scale=scale, seed=1)
    by_hand = [slow_kl_divergence(*rows) for rows in zip(logits.tolist(), other.tolist(), strict=True)]
    got = kl_divergence(logits, other)
    assert got.shape == (7,)
    close(got, [value for value, _, _ in by_hand])
    of_logits, of_other = torch.autograd.grad(got.sum(), (logits, other))
    close(of_logits, [row for _, row, _ in by_hand])
    close(of_other, [row for _, _, row in by_hand])
    assert not torch.allclose(kl_divergence(other, logits), got)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_margin_is_above_zero_exactly_where_the_image_is_misclassified(classes):
    logits, labels = some_logits(classes, count=200)
    wrong = logits.argmax(1) != labels
    assert wrong.any()
    assert not wrong.all()
    assert torch.equal(margin(logits, labels) > 0, wrong)


def test_the_margin_of_a_tie_is_zero_with_a_finite_gradient():
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]], requires_grad=True)
    got = margin(logits, torch.tensor([0, 1]))
    assert got.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient.sum(1).tolist() == [0, 0]


CONFIDENT = torch.tensor([[1000.0, 0, 0], [-1000, 0, 0], [1000, -1000, 1000], [-1000, -1000, -1000], [0, 1000, -1000]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "label", "expected"),
    [
        (cross_entropy, 0, [0, 1000 + math.log(2), math.log(2), math.log(3), 1000]),
        (cross_entropy, 1, [1000, math.log(2), 2000 + math.log(2), math.log(3), 0]),
        (margin, 0, [-1000, 1000, 0, 0, 1000]),
        (margin, 1, [1000, 0, 2000, 0, -1000]),
        # the other classes than the rival, label included: log-sum-exp of what is left
        (boosted_cross_entropy, 0, [0, 1000 + 2 * math.log(2), 2 * math.log(2), math.log(3) + math.log(1.5), 2000]),
        (
            boosted_cross_entropy,
            1,
            [2000 - math.log(2), 2 * math.log(2), 2000 + 2 * math.log(2), math.log(3) + math.log(1.5), 0],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_confident_logits_stay_finite(loss, label, expected, dtype):
    logits = CONFIDENT.to(dtype).requires_grad_()
    got = loss(logits, torch.full((5,), label))
    close(got, expected, 1e-6 if dtype == torch.float32 else 1e-12)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_of_confident_logits_stays_finite(dtype):
    logits = CONFIDENT.to(dtype).requires_grad_()
    other = CONFIDENT.roll(1, dims=1).to(dtype).requires_grad_()
    # p and q row by row: (1 0 0)(0 1 0); (0 .5 .5)(.5 0 .5); (.5 0 .5)(.5 .5 0); even both; (0 1 0)(0 0 1)
    expected = [1000, 500, 1000, 0, 1000]
    got = kl_divergence(logits, other)
    close(got, expected, 1e-6)
    for gradient in torch.autograd.grad(got.sum(), (logits, other)):
        assert gradient.isfinite().all()


def test_the_boosted_loss_does_not_lose_what_is_left_of_one():
    """Its second term with p_r so near 1 that 1 - p_r is 0 in float32."""
    logits = torch.tensor([[0.0, 30.0, -1.0]], requires_grad=True)
    got = boosted_cross_entropy(logits, torch.tensor([0]))
    close(got, [30 + 30 - math.log(1 + math.exp(-1))], 1e-6)
    (gradient,) = torch.autograd.grad(got, logits)
    left = 1 / (1 + math.exp(-1))
    close(gradient, [[-1 - left, 2, left - 1]], 1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32(dtype, expected):
    logits, labels = some_logits(10, scale=5, dtype=dtype)
    other, _ = some_logits(10, scale=5, seed=1, dtype=dtype)
    assert precise(logits) == expected
    wide = logits.detach().to(expected)
    for loss in OF_LABELS:
        got = loss(logits, labels)
        assert got.dtype == expected
        assert torch.equal(got, loss(wide, labels))
        assert torch.autograd.grad(got.sum(), logits)[0].dtype == dtype
    got = kl_divergence(logits, other)
    assert got.dtype == expected
    assert torch.equal(got, kl_divergence(wide, other.detach().to(expected)))
