"""Modes that are changed for a moment are restored exactly, after an exception too."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import inventory, mixed_net, residual_net, same_inventory, some_images
from torch import nn

from nsr.errors import InputError
from nsr.modes import batch_norm_mode, frozen_parameters, network_mode

modes = pytest.mark.parametrize("mode", ["batch", "frozen", "update"])


class Broken(Exception):
    pass


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_mode_is_of_every_module_inside_and_each_ones_own_afterwards(mode):
    net = mixed_net()
    before = inventory(net)
    with network_mode(net, mode):
        assert {module.training for module in net.modules()} == {mode == "train"}
    same_inventory(before, inventory(net))


def test_no_mode_leaves_all_inside_and_undoes_what_the_body_did():
    net = mixed_net()
    before = inventory(net)
    with network_mode(net):
        same_inventory(before, inventory(net))
        net.train()
    same_inventory(before, inventory(net))


def test_no_parameter_asks_for_a_gradient_inside():
    net = mixed_net()
    before = inventory(net)
    with frozen_parameters(net):
        assert not any(parameter.requires_grad for parameter in net.parameters())
    same_inventory(before, inventory(net))


@pytest.mark.parametrize(
    "change",
    [
        *(lambda net, mode=mode: network_mode(net, mode) for mode in ("eval", "train")),
        *(lambda net, mode=mode: batch_norm_mode(net, mode) for mode in ("batch", "frozen", "update")),
        frozen_parameters,
    ],
)
def test_put_back_after_an_exception(change):
    net = mixed_net()
    before = inventory(net)
    with pytest.raises(Broken), change(net):
        raise Broken
    same_inventory(before, inventory(net))


def test_mode_is_put_back_where_a_module_refuses_it():
    class Stubborn(nn.Identity):
        def train(self, mode=True):
            raise Broken

    net = nn.Sequential(nn.Dropout(), Stubborn(), nn.Dropout())
    net[2].training = False
    with pytest.raises(Broken), network_mode(net, "eval"):
        pass
    assert [module.training for module in net.modules()] == [True, True, True, False]


def normalized(net, images, *, with_batch):
    """The logits by hand, with the batch's or the running statistics."""
    other = copy.deepcopy(net)
    for bn in (other.bn1, other.bn2):
        bn.training = with_batch
    return other.values(images)["fc"]


@modes
def test_the_three_modes(mode):
    net, images = residual_net().train(), some_images()
    before = inventory(net)
    updated = copy.deepcopy(net)
    updated(images)
    with batch_norm_mode(net, mode):
        logits = net(images)
    torch.testing.assert_close(logits, normalized(net, images, with_batch=mode != "frozen"))
    assert not torch.allclose(logits, normalized(net, images, with_batch=mode == "frozen"))
    after = inventory(net)
    if mode == "update":
        assert not torch.equal(after["buffers"]["bn1.running_mean"], before["buffers"]["bn1.running_mean"])
        assert after["buffers"]["bn1.num_batches_tracked"] == before["buffers"]["bn1.num_batches_tracked"] + 1
        same_inventory(inventory(updated), after)
    else:
        same_inventory(before, after)
    with pytest.raises(InputError, match=r"batch_norm_mode is 'evl'; it must be one of batch, frozen, update"):
        batch_norm_mode(net, "evl").__enter__()


@modes
def test_the_running_statistics_of_a_frozen_layer_stay_in_use(mode):
    net, images = residual_net().train(), some_images()
    net.bn1.eval()
    before = inventory(net)["buffers"]
    bn = net.bn1
    expected = nn.functional.batch_norm(net.conv1(images), bn.running_mean, bn.running_var, bn.weight, bn.bias)
    got = []
    net.bn1.register_forward_hook(lambda module, inputs, output: got.append(output.clone()))
    with batch_norm_mode(net, mode):
        net(images)
    torch.testing.assert_close(got[0], expected)
    assert torch.equal(net.bn1.running_mean, before["bn1.running_mean"])
    assert not net.bn1.training


@modes
def test_a_layer_without_running_statistics_keeps_using_the_batch(mode):
    net = nn.BatchNorm1d(3, track_running_stats=False)
    inputs = torch.randn(8, 3)
    expected = net(inputs)
    with batch_norm_mode(net, mode):
        torch.testing.assert_close(net(inputs), expected)
    assert net.running_mean is None
    assert not net.track_running_stats


def test_momentum_none_is_a_cumulative_average_all_the_same():
    net = nn.BatchNorm1d(3, momentum=None)
    inputs = torch.randn(8, 3)
    with batch_norm_mode(net, "batch"):
        net(inputs + 100)
    net(inputs)
    torch.testing.assert_close(net.running_mean, inputs.mean(0))


@modes
@pytest.mark.parametrize("training", [True, False])
def test_synchronized_layers_are_handled_as_batch_norm(mode, training):
    """Where there are no processes to exchange with, they compute what BatchNorm does, on the CPU too."""
    plain, images = residual_net().train(training), some_images()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(net.bn1, nn.SyncBatchNorm)
    logits = []
    for network in (plain, net):
        with batch_norm_mode(network, mode):
            logits.append(network(images))
    torch.testing.assert_close(*logits)
    same_inventory(inventory(plain), inventory(net))
    with network_mode(net, "eval"):
        torch.testing.assert_close(net(images), plain.eval()(images))
    assert net.bn1.training is training


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_instance_norm_that_tracks_is_left_untouched_too(mode):
    net = nn.InstanceNorm2d(3, track_running_stats=True)
    before = inventory(net)
    with batch_norm_mode(net, mode):
        net(some_images(4, channels=3) + 5)
    same_inventory(before, inventory(net))
