"""examples/gradalign, multi_norm and tecoa: the published equations written plainly, and a run of each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nsr.app.folders import with_folder
from nsr.attacks import GradientAttack
from nsr.models import Classifier
from nsr.objectives import AdversarialTraining, compute_terms
from tests.conftest import TINY, image_folder, made, read_json, refusal, rows

pytestmark = pytest.mark.slow
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "validation_attack.steps=1", "test_attacks=[clean]")


def small_net(seed: int = 0) -> nn.Module:
    """Smooth, so that gradients of gradients are right by differences, in float64."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(3 * 16, 4))
    return nn.Sequential(*layers).double()


def batch(count: int = 5, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, size, size, generator=draw, dtype=torch.float64), torch.arange(count) % 4


# ---------------------------------------------------------------- GradAlign


def plain_misalignment(net, images, noisy, labels) -> float:
    """1 - cos of the gradients, image by image and pixel by pixel."""
    cosines = []
    for each in range(len(images)):
        pair = []
        for inputs in (images, noisy):
            point = inputs.clone().requires_grad_()
            loss = F.cross_entropy(net(point), labels, reduction="none")[each]
            pair.append(torch.autograd.grad(loss, point)[0][each].flatten().tolist())
        dot = sum(a * b for a, b in zip(*pair, strict=True))
        cosines.append(dot / math.sqrt(sum(a * a for a in pair[0]) * sum(b * b for b in pair[1])))
    return 1 - sum(cosines) / len(cosines)


def test_gradalign_is_the_published_equation_and_its_gradient_flows(example):
    grad_align = example("gradalign", "grad_align")
    net, (images, labels) = small_net().eval(), batch()
    noisy = images + 0.3 * (2 * torch.rand_like(images) - 1)
    value = 1 - grad_align.alignment(net, images, noisy, labels)
    assert value.item() == pytest.approx(plain_misalignment(net, images, noisy, labels), rel=1e-9)
    assert grad_align.alignment(net, images, images, labels).item() == pytest.approx(1)

    # as in the published code the gradient at the images is a constant: the difference moves the other one alone
    weight = net[0].weight
    (gradient,) = torch.autograd.grad(value, weight)
    fixed = grad_align.input_gradient(net, images, labels, create_graph=False)
    moved = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight[0, 0, 1, 1] += step
        other = grad_align.input_gradient(net, noisy, labels, create_graph=False)
        moved.append(1 - (fixed * other).sum(1).mean().item())
        with torch.no_grad():
            weight[0, 0, 1, 1] -= step
    assert gradient[0, 0, 1, 1].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4)


def test_gradalign_ignores_images_without_gradient_and_leaves_batch_norm_alone(example):
    grad_align = example("gradalign", "grad_align")
    net, (images, labels) = small_net().train(), batch()
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    objective = grad_align.GradAlign(epsilon="8/255", weight=0.2)
    inputs = {"adversarial_logits": net.eval()(images), "clean_images": images, "labels": labels, "net": net.train()}
    terms = compute_terms(objective, inputs)
    assert terms.keys() == {"adversarial_cross_entropy", "gradient_misalignment"}
    assert all(torch.equal(value, statistics[name]) for name, value in net.state_dict().items())

    certain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()  # a gradient of 0 where the prediction is certain
    with torch.no_grad():
        certain[1].weight.mul_(1e-3)
        certain[1].bias.copy_(torch.tensor([2e3, 0.0, 0.0, 0.0]))
    assert grad_align.alignment(certain, images, images, labels).item() == pytest.approx(1)
    assert grad_align.alignment(certain, images[:1], images[:1], labels[:1]).item() == 0
    assert "objective.epsilon is 8" in refusal(grad_align.GradAlign, epsilon=8)


def test_gradalign_makes_the_loss_more_linear(example, trained_example):
    """The cosine at the end of the run is higher with the regularizer than with a weight that changes nothing."""
    example("gradalign", "grad_align")
    cosines = {}
    for weight in (1e-9, 0.2):
        settings = (
            f"objective.weight={weight}",
            "epsilon=0.3",
            "model.width=8",
            "trainer.max_epochs=3",
            "test_attacks=[clean]",
        )
        run = trained_example("objective=gradalign", *settings, "validation_attack.steps=1", name=str(weight))
        each = [1 - float(row["train/gradient_misalignment"]) / weight for row in rows(run / "metrics.csv")[1:]]
        cosines[weight] = each[-1]
    assert cosines[0.2] > cosines[1e-9] + 0.03


# ---------------------------------------------------------------- several norms


def attacks(steps: int = 3) -> list[GradientAttack]:
    return [GradientAttack(epsilon=e, norm=n, steps=steps) for n, e in (("linf", 0.1), ("l2", 0.5), ("l1", 3.0))]


def test_max_takes_each_images_worst_attack(example):
    union = example("multi_norm", "union")
    net, (images, labels) = small_net().eval(), batch()
    draws = [torch.Generator().manual_seed(2) for _ in range(2)]
    apart = [
        F.cross_entropy(net(each(net, images, labels, generator=draws[0])), labels, reduction="none")
        for each in attacks()
    ]
    worst = union.Worst(attacks())(net, images, labels, generator=draws[1])
    expected = [max(losses).item() for losses in zip(*apart, strict=True)]
    assert F.cross_entropy(net(worst), labels, reduction="none").tolist() == pytest.approx(expected)


def test_avg_is_the_mean_over_norms(example):
    union = example("multi_norm", "union")
    net, (images, labels) = small_net().eval(), batch()
    torch.manual_seed(3)
    expected = sum(F.cross_entropy(net(each(net, images, labels)), labels).item() for each in attacks()) / 3
    torch.manual_seed(3)
    terms = compute_terms(union.Average(attacks()), {"clean_images": images, "labels": labels, "net": net})
    assert terms.keys() == {"linf_cross_entropy", "l2_cross_entropy", "l1_cross_entropy"}
    assert sum(terms.values()).item() == pytest.approx(expected)


def plain_msd(net, image, label, *, epsilons, sizes, steps):
    """Algorithm 1 of Maini et al. 2020 for one image, L-infinity and L2, and the best iterate of their code."""
    perturbation, best, highest = torch.zeros_like(image), None, -math.inf
    for _ in range(steps):
        point = (image + perturbation).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(point[None]), label[None]), point)
        found = []
        for norm in ("linf", "l2"):
            direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
            moved = perturbation + sizes[norm] * direction
            if norm == "linf":
                moved = moved.clamp(-epsilons[norm], epsilons[norm])
            elif moved.norm() > epsilons[norm]:
                moved = moved * epsilons[norm] / moved.norm()
            moved = (image + moved).clamp(0, 1) - image
            found.append((F.cross_entropy(net((image + moved)[None]), label[None]).item(), moved))
        loss, perturbation = max(found, key=lambda each: each[0])
        if loss > highest:
            best, highest = image + perturbation, loss
    return best.detach()


def test_msd_is_the_published_algorithm(example):
    union = example("multi_norm", "union")
    net, (images, labels) = small_net().eval(), batch()
    settings = {"epsilons": {"linf": 0.1, "l2": 0.4}, "steps": 6}
    sizes = {"linf": 0.03, "l2": 0.2}
    found = union.MultiSteepestDescent(**settings, step_sizes=sizes)(net, images, labels)
    for each in range(len(images)):
        expected = plain_msd(net, images[each], labels[each], sizes=sizes, **settings)
        torch.testing.assert_close(found[each], expected)


def test_msd_is_inside_one_of_the_balls_and_leaves_the_network_as_it_was(example):
    union = example("multi_norm", "union")
    net, (images, labels) = small_net().train(), batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    radii = {"linf": "0.1", "l2": 0.5, "l1": 3}
    distance = (union.MultiSteepestDescent(epsilons=radii, steps=5)(net, images, labels) - images).flatten(1)
    inside = [
        distance.abs().amax(1) <= 0.1 + 1e-9,
        distance.norm(dim=1) <= 0.5 + 1e-9,
        distance.abs().sum(1) <= 3 + 1e-9,
    ]
    assert torch.stack(inside).any(0).all()
    assert net.training and all(each.requires_grad for each in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert "train_attack.epsilons is 'l3'" in refusal(union.MultiSteepestDescent, epsilons={"l3": 1})
    assert "attacks is []" in refusal(union.Worst, [])


@pytest.mark.parametrize("objective", ["max", "avg", "msd"])
def test_training_on_several_norms(objective, example, trained_example):
    example("multi_norm", "union")
    run = trained_example(f"objective={objective}", *SHORT)
    row = rows(run / "metrics.csv")[1]
    named = "train/l1_cross_entropy" if objective == "avg" else "train/adversarial_cross_entropy"
    assert math.isfinite(float(row[named]))


# ---------------------------------------------------------------- CLIP


@pytest.fixture
def clip(example):
    zero_shot = example("tecoa", "zero_shot")
    torch.manual_seed(0)
    settings = {"classes": 2, "class_names": ["cat", "dog"], "name": "tiny-clip", "configuration": "tiny-clip.json"}
    return zero_shot, Classifier(zero_shot.ZeroShot(**settings))


def test_tecoa_and_fare_are_the_published_equations(clip):
    zero_shot, net = clip
    net.eval()
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 1])
    adversarial = (images + 0.05 * torch.randn_like(images)).clamp(0, 1)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    embeddings = net.net.encoder((adversarial - mean.view(3, 1, 1)) / std.view(3, 1, 1))

    expected = 0.0  # Mao et al. 2023, equation 3: -log of the softmax of cosines / temperature
    for each in range(3):
        cosines = [F.cosine_similarity(embeddings[each], text, dim=0).item() for text in net.net.texts]
        expected += math.log(sum(math.exp(100 * value) for value in cosines)) - 100 * cosines[labels[each]]
    inputs = {"adversarial_logits": net(adversarial), "labels": labels}
    assert compute_terms(AdversarialTraining(), inputs)["adversarial_cross_entropy"].item() == pytest.approx(
        expected / 3, rel=1e-4
    )

    with torch.no_grad():
        net.net.encoder.proj.mul_(1.1)  # a step of training: the original stays
    clean = net.net.original((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    distances = [
        sum((1.1 * a - b) ** 2 for a, b in zip(z.tolist(), o.tolist(), strict=True))
        for z, o in zip(embeddings, clean, strict=True)
    ]
    value = zero_shot.fare(images, adversarial, net)
    assert value.item() == pytest.approx(sum(distances) / 3, rel=1e-4)
    value.backward()
    assert net.net.encoder.proj.grad.abs().sum() > 0
    assert all(each.grad is None for each in net.net.original.parameters())


def test_the_attack_of_fare_moves_embeddings_farther_than_noise(clip):
    zero_shot, net = clip
    images, labels = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    adversarial = zero_shot.EmbeddingAttack(epsilon="8/255", steps=5)(net.eval(), images, labels)
    noisy = (images + 8 / 255 * torch.randn_like(images).sign()).clamp(0, 1)
    assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6
    assert zero_shot.fare(images, adversarial, net) > 2 * zero_shot.fare(images, noisy, net)
    assert "steps is -1" in refusal(zero_shot.EmbeddingAttack, epsilon=0.1, steps=-1)


@pytest.mark.filterwarnings("ignore")  # of open_clip, for random weights
@pytest.mark.parametrize("objective", ["tecoa", "fare"])
def test_clip_is_fine_tuned(objective, example, trained_example, tmp_path):
    example("tecoa", "zero_shot")
    data = (f"data.root={image_folder(tmp_path / 'data', images=12)}", "data.batch_size=8", "data.validation_images=4")
    model = ("model=clip", "model.name=tiny-clip", "model.configuration=tiny-clip.json", "model.class_names=[cat,dog]")
    run = trained_example("data=image_folder", *data, *model, f"objective={objective}", *SHORT, "train_attack.steps=2")
    assert 0 <= read_json(run / "metrics.json")["test/clean_accuracy"] <= 1
    named = "train/fare" if objective == "fare" else "train/adversarial_cross_entropy"
    assert float(rows(run / "metrics.csv")[1][named]) > 0


def test_names_of_another_number_are_one_line(example, tmp_path):
    example("tecoa", "zero_shot")
    settings = ["model=clip", "model.name=tiny-clip", "model.configuration=tiny-clip.json", "model.class_names=[cat]"]
    data = ["data=image_folder", f"data.root={image_folder(tmp_path / 'data')}"]
    said = refusal(made, "train", *with_folder([*data, *settings, *TINY[:1]], "conf"))
    assert "model.class_names has 1 names; the data have 2 classes" in said
