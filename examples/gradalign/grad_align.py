"""GradAlign: FGSM training without catastrophic overfitting (Andriushchenko and Flammarion 2020)."""

import torch
from torch import Tensor
from torch.nn import functional as F

import nsr
from nsr.errors import check_epsilon, check_number


def input_gradient(net, images: Tensor, labels: Tensor, *, create_graph: bool) -> Tensor:
    """Return the gradient of each image's own cross-entropy at length 1, or 0: (batch, pixel)."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(net(images), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, images, create_graph=create_graph)[0].flatten(1)
    # by its largest entry first: the squares of a confident network's gradient underflow
    largest = gradient.detach().abs().amax(1, keepdim=True)
    return F.normalize(gradient / torch.where(largest > 0, largest, 1))


def alignment(net, images: Tensor, noisy: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cosine of the loss gradients at images and at noisy images (batch, ...), a scalar.

    As in the published code the gradient at the images is a constant, and an image where one of the two is 0 does not
    count.
    """
    first = input_gradient(net, images, labels, create_graph=False)
    second = input_gradient(net, noisy, labels, create_graph=True)
    counted = first.any(1) & second.any(1)
    return (first * second).sum() / counted.sum().clamp(min=1)


class GradAlign:
    """Cross-entropy on the adversarial images, and a penalty where the loss is not linear within the ball.

        L = CE(f(x'), y)  +  weight * (1 - cos(grad_x CE(f(x), y), grad_x CE(f(x + n), y))),    n ~ U(-epsilon, epsilon)

    Source: Andriushchenko and Flammarion 2020, equation 4; x' is FGSM's. The passes of the penalty use the batch's
    BatchNorm statistics and write none.

    Args:
        epsilon: of the noise in L-infinity, pixels in [0, 1], a number or text such as '8/255'.
        weight: lambda.
    """

    def __init__(self, *, epsilon: float | str, weight: float = 0.2):
        self.epsilon = check_epsilon("objective.epsilon", epsilon, norm="linf")
        self.weight = check_number("objective.weight", weight, lowest=0)

    def __call__(self, adversarial_logits: Tensor, clean_images: Tensor, labels: Tensor, net) -> dict[str, Tensor]:
        noise = (2 * torch.rand_like(clean_images) - 1) * self.epsilon
        with nsr.batch_norm_mode(net, "batch"):
            cosine = alignment(net, clean_images, clean_images + noise, labels)
        return {
            "adversarial_cross_entropy": F.cross_entropy(adversarial_logits, labels),
            "gradient_misalignment": self.weight * (1 - cosine),
        }
