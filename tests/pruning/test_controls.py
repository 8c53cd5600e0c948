"""Each control takes away what its name says, and nothing else."""

import pytest
import torch

from ticketlab.pruning.controls import Subject, controls


@pytest.fixture
def subject():
    generator = torch.Generator().manual_seed(3)
    initial = {
        "a.weight": torch.randn(40, 30, generator=generator),
        "a.bias": torch.zeros(40),
        "b.weight": torch.randn(10, 40, generator=generator) / 4,
        "b.bias": torch.full((10,), 0.5),
    }
    fresh = {name: torch.randn(value.shape, generator=generator) for name, value in initial.items()}
    mask = {
        "a.weight": initial["a.weight"].abs() > 1.2,
        "b.weight": initial["b.weight"].abs() > 0.1,
    }
    return Subject(mask, initial, fresh, torch.Generator().manual_seed(7))


def counts(mask):
    return {name: int(kept.sum()) for name, kept in mask.items()}


@pytest.mark.parametrize("name", list(controls))
def test_every_control_keeps_as_many_weights_and_removed_ones_are_zero(subject, name):
    start = controls.find(name)(subject)
    assert sum(counts(start.mask).values()) == sum(counts(subject.mask).values())
    assert all(bool((start.weights[n][~kept] == 0).all()) for n, kept in start.mask.items())
    assert set(start.weights) == set(subject.initial)
    assert name == "frozen" or not start.frozen


@pytest.mark.parametrize("name", list(controls))
def test_no_control_changes_what_it_was_given(subject, name):
    before = {n: value.clone() for n, value in (subject.initial | subject.fresh).items()}
    kept = {n: value.clone() for n, value in subject.mask.items()}
    controls.find(name)(subject)
    assert all(torch.equal(before[n], value) for n, value in (subject.initial | subject.fresh).items())
    assert all(torch.equal(kept[n], value) for n, value in subject.mask.items())


def test_reinit_has_the_mask_and_other_weights(subject):
    start = controls.find("reinit")(subject)
    kept = subject.mask["a.weight"]
    assert torch.equal(start.mask["a.weight"], kept)
    assert torch.equal(start.weights["a.weight"][kept], subject.fresh["a.weight"][kept])
    assert torch.equal(start.weights["b.bias"], subject.fresh["b.bias"])


def test_same_sign_reinit_has_fresh_magnitudes_and_the_original_signs(subject):
    start = controls.find("reinit_same_sign")(subject)
    for name, kept in subject.mask.items():
        assert torch.equal(start.weights[name][kept].sign(), subject.initial[name][kept].sign())
        assert torch.equal(start.weights[name][kept].abs(), subject.fresh[name][kept].abs())


def test_signed_constants_are_one_magnitude_per_layer_with_the_original_signs(subject):
    start = controls.find("signed_constant")(subject)
    for name, kept in subject.mask.items():
        values, whole = start.weights[name][kept], subject.initial[name].double()
        deviation = ((whole - whole.mean()) ** 2).mean().sqrt()
        assert torch.equal(values.sign(), subject.initial[name][kept].sign())
        torch.testing.assert_close(values.abs().double(), deviation.expand(len(values)), rtol=1e-6, atol=0)
    assert torch.equal(start.weights["b.bias"], subject.initial["b.bias"])


def test_shuffled_weights_are_the_same_values_in_other_places(subject):
    start = controls.find("shuffled_weights")(subject)
    for name, kept in subject.mask.items():
        own, moved = subject.initial[name][kept], start.weights[name][kept]
        assert torch.equal(own.sort().values, moved.sort().values)
        # of 100 values or more hardly any stays where it was
        assert (own == moved).float().mean() < 0.1


@pytest.mark.parametrize(("name", "weights"), [("shuffled_mask", "initial"), ("random_mask", "fresh")])
def test_masks_move_within_layers_over_the_weights_they_say(subject, name, weights):
    start = controls.find(name)(subject)
    assert counts(start.mask) == counts(subject.mask)
    for layer, kept in start.mask.items():
        assert torch.equal(start.weights[layer][kept], getattr(subject, weights)[layer][kept])
        share = subject.mask[layer].float().mean()
        # two masks of density p that know nothing of each other share p of their places
        assert ((kept & subject.mask[layer]).sum() / kept.sum() - share).abs() < 0.12


def test_a_global_random_mask_levels_the_layers_densities(subject):
    start = controls.find("random_mask_global")(subject)
    total = sum(kept.numel() for kept in subject.mask.values())
    density = sum(counts(subject.mask).values()) / total
    before = [float(kept.float().mean()) for kept in subject.mask.values()]
    assert abs(before[0] - before[1]) > 0.3
    for kept in start.mask.values():
        assert abs(float(kept.float().mean()) - density) < 0.06


def test_layers_that_the_recipe_never_prunes_stay_whole_in_a_global_random_mask(subject):
    mask = {**subject.mask, "b.weight": torch.ones(10, 40, dtype=torch.bool)}
    start = controls.find("random_mask_global")(Subject(mask, subject.initial, subject.fresh, subject.generator))
    assert bool(start.mask["b.weight"].all())
    assert counts(start.mask) == counts(mask)


def test_frozen_weights_are_the_removed_ones_initial_values(subject):
    start = controls.find("frozen")(subject)
    for name, kept in subject.mask.items():
        assert torch.equal(start.weights[name] + start.frozen[name], subject.initial[name])
        assert bool((start.frozen[name][kept] == 0).all())
