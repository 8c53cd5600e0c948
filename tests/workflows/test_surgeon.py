"""Optimal brain surgeon in a run: removed weights are zero, and what is left makes up for them."""

import pytest

from ticketlab.errors import RecipeError
from ticketlab.workflows.inputs import check_recipe

OBS = "method=oneshot", "pruning={criterion: obs, densities: [0.2, 0.1], after: lr_rewind}"


def test_weights_that_make_up_start_nearer_to_the_trained_network(pruned):
    plain, _ = pruned(*OBS)
    store, _ = pruned(*OBS, "pruning.compensate=true", folder="made_up")
    for level in (1, 2):
        one, other = plain.read_ticket(1, level), store.read_ticket(1, level)
        for name, kept in one.mask.items():
            assert (other.mask[name] == kept).all() and not other.weights[name][~kept].any()
            assert not (other.weights[name][kept] == one.weights[name][kept]).all()
    # before any training: what the first 10 steps see
    losses = [found.read_level(1, 2).curve[0]["train_loss"] for found in (store, plain)]
    assert losses[0] < losses[1]
    levels = [found.read_level(1, 2) for found in (store, plain)]
    assert levels[0].flops - levels[1].flops == pytest.approx(1000 / 960 * plain.read_level(1, 0).flops)


@pytest.mark.parametrize(
    "overrides", [["pruning={compensate: true}"], ["method=at_init", "pruning={compensate: true}"]]
)
def test_only_trained_weights_make_up(tiny, overrides):
    with pytest.raises(RecipeError, match="makes up with trained weights"):
        check_recipe(tiny(*overrides))
