"""Batch-norm statistics after recalibration, against torch's own and by hand."""

import pytest
import torch
from torch import nn

from ticketlab.data.batches import Examples
from ticketlab.training.recalibrate import recalibrate_

UNIT = torch.ones(1, 1, 1)


def examples(count, size=6):
    images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))
    return Examples(images, torch.zeros(count, dtype=torch.long), 2 * UNIT, -UNIT)


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Dropout(dropout), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def statistics(model):
    return {name: value for name, value in model.named_buffers() if "running" in name}


def test_statistics_are_those_of_torchs_update_bn_over_the_same_batches():
    data = examples(500)
    ours, theirs = network(), network()
    recalibrate_(ours, data)
    inputs = 2 * data.images - 1
    torch.optim.swa_utils.update_bn([inputs[:250], inputs[250:]], theirs)
    for name, value in statistics(theirs).items():
        torch.testing.assert_close(statistics(ours)[name], value, msg=name)


def test_the_first_norm_has_the_mean_and_variance_of_what_it_sees():
    data, model = examples(250), network()
    recalibrate_(model, data)
    seen = model[1](2 * data.images - 1).detach()
    torch.testing.assert_close(model[2].running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model[2].running_var, seen.var(dim=(0, 2, 3)))


def test_what_ran_before_is_forgotten_and_momentum_stays_as_it_was():
    data, fresh, used = examples(100), network(), network()
    used[2].running_mean.fill_(50)
    used[2].momentum = 0.3
    recalibrate_(fresh, data)
    recalibrate_(used, data)
    assert all(torch.equal(statistics(used)[name], value) for name, value in statistics(fresh).items())
    assert (used[2].momentum, used[5].momentum) == (0.3, 0.1)
    assert not any(layer.training for layer in used.modules())


def test_dropout_does_not_touch_the_statistics():
    data, plain, dropping = examples(100), network(), network(0.9)
    recalibrate_(plain, data)
    recalibrate_(dropping, data)
    assert all(torch.equal(statistics(dropping)[name], value) for name, value in statistics(plain).items())


@pytest.mark.parametrize("count", [250, 300])
def test_a_smaller_last_batch_is_left_out(count):
    model, whole = network(), network()
    recalibrate_(model, examples(count))
    recalibrate_(whole, examples(count).first(250))
    assert all(torch.equal(statistics(model)[name], value) for name, value in statistics(whole).items())
