"""Pruning before training: masks against formulas, what a ticket starts from, and what a network costs."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from ticketlab.data.batches import permutation
from ticketlab.errors import FailedRun, RecipeError
from ticketlab.pruning.masks import masked, remaining
from ticketlab.report import run_levels
from ticketlab.seeds import derive_seed
from ticketlab.trained_networks import run_networks
from ticketlab.workflows.inputs import check_recipe, load_data
from ticketlab.workflows.make_plan import make_plan

NAMES = ["fc1.weight", "fc2.weight", "output.weight"]


def forward(weights, images):
    """LeNet-300-100 in double precision, written out."""
    for name in ("fc1", "fc2", "output"):
        images = images @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        images = images.relu() if name != "output" else images
    return images


def doubles(weights):
    return {name: value.double().requires_grad_(name in NAMES) for name, value in weights.items()}


def highest(saliency, keep):
    """The mask of the `keep` highest of all layers together; no ties."""
    values = torch.cat([saliency[name].flatten() for name in NAMES])
    assert values.unique().numel() > keep
    threshold = values.sort(descending=True).values[keep - 1]
    return {name: saliency[name] >= threshold for name in NAMES}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in NAMES)


def test_snip_keeps_the_weights_that_its_formula_says(pruned, tiny, places):
    asked = [
        "method=at_init",
        "pruning={criterion: snip, scope: global, densities: [0.3, 0.1], examples: 70}",
        "seed=4",
    ]
    store, _ = pruned(*asked)
    plan = make_plan(*load_data(tiny(*asked), places))
    chosen = permutation(len(plan.splits.train), derive_seed(4, "examples"))[:70]
    data = plan.splits.train.some(chosen)
    weights = doubles(store.read_rewind(1))
    images = (data.images.float() * data.scale + data.shift).flatten(1).double()
    loss = functional.cross_entropy(forward(weights, images), data.labels)
    gradients = dict(zip(NAMES, torch.autograd.grad(loss, [weights[name] for name in NAMES]), strict=True))
    saliency = {name: (weights[name] * gradients[name]).abs() for name in NAMES}
    total = sum(weights[name].numel() for name in NAMES)
    for level, density in ((1, 0.3), (2, 0.1)):
        ticket = store.read_ticket(1, level)
        assert remaining(ticket.mask) == round(density * total)
        assert same(ticket.mask, highest(saliency, round(density * total)))
        start = plan.build(ticket.facts["init_seed"]).state_dict()
        assert same(masked(start, ticket.mask), masked(store.read_rewind(1), ticket.mask))


def test_synflow_looks_anew_before_each_of_its_rounds(pruned):
    store, _ = pruned(
        "method=at_init", "pruning={criterion: synflow, scope: global, densities: [0.05], rounds: 3}", "seed=1"
    )
    weights = {name: value.abs() for name, value in store.read_rewind(1).items()}
    total = sum(weights[name].numel() for name in NAMES)
    for at in (1, 2, 3):
        values = doubles(weights)
        flow = forward(values, torch.ones(1, 64, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, [values[name] for name in NAMES])
        saliency = {name: values[name].detach() * found for name, found in zip(NAMES, gradients, strict=True)}
        mask = highest(saliency, round(0.05 ** (at / 3) * total))
        weights = masked(weights, mask)
    assert same(store.read_ticket(1, 1).mask, mask)


def test_each_level_is_pruned_from_the_start_and_costs_no_dense_training(pruned):
    store, _ = pruned("method=at_init", "pruning={criterion: snip, densities: [0.5, 0.3]}")
    one, two = (store.read_ticket(1, level).mask for level in (1, 2))
    assert not same(one, two) and all((one[name] | two[name]).sum() == one[name].sum() for name in NAMES)
    levels = {level.level: level for level in run_levels(store)}
    assert levels[0].steps == levels[1].steps == 30
    networks = {round(network.density, 1): network for network in run_networks(store)}
    assert networks[0.3].flops == levels[2].flops and networks[0.3].seconds == levels[2].seconds
    # each layer of a step is multiplied whole; before it 1,000 examples have their gradients taken
    assert levels[2].flops == pytest.approx(levels[0].flops * (1 + 1000 / (30 * 32)))


def test_a_network_can_be_pruned_early_in_its_training(pruned):
    store, _ = pruned("method=at_init", "pruning={densities: [0.5], rewind: 12it}")
    ticket = store.read_ticket(1, 1)
    early = store.read_rewind(1)
    assert not same(early, store.read_weights(1, 0, "final"))
    assert same(ticket.weights, masked(early, ticket.mask))
    assert all(
        early[name].abs()[ticket.mask[name]].min() >= early[name].abs()[~ticket.mask[name]].max() for name in NAMES
    )
    levels = run_levels(store)
    assert levels[1].steps == 18
    network = next(network for network in run_networks(store) if network.density < 1)
    assert network.flops == pytest.approx(levels[1].flops + 0.4 * levels[0].flops)


@pytest.mark.parametrize("allocation", ["er", "erk"])
def test_layers_keep_as_many_weights_as_their_shape_says(pruned, allocation):
    store, _ = pruned("method=at_init", f"pruning={{criterion: random, densities: [0.1], allocation: {allocation}}}")
    mask = store.read_ticket(1, 1).mask
    # of 64·300 + 300·100 + 100·10 = 50,200 weights 5,020, in parts of 364, 400 and 110: 2,090.8, 2,297.5, 631.8
    assert {name: int(kept.sum()) for name, kept in mask.items()} == {
        "fc1.weight": 2091, "fc2.weight": 2297, "output.weight": 632,
    }  # fmt: skip


def test_a_layer_that_is_ignored_keeps_all_whatever_the_others_do(pruned):
    store, _ = pruned(
        "method=at_init", "pruning={criterion: random, densities: [0.1], allocation: er, ignore: [output]}"
    )
    counts = {name: int(kept.sum()) for name, kept in store.read_ticket(1, 1).mask.items()}
    assert counts["output.weight"] == 1000 and sum(counts.values()) == 1000 + 4920


def test_gradual_pruning_ends_at_the_density_asked_for(pruned):
    store, _ = pruned("method=gradual", "pruning={densities: [0.1], levels: 4}", "schedule.shape=cubic")
    counts = [level.remaining for level in run_levels(store)]
    assert counts[0] == 50200 and counts[-1] == 1920 + 3000 + 100 and counts == sorted(counts, reverse=True)
    assert [network.density for network in run_networks(store)] == [counts[-1] / 50200]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=at_init", "pruning={densities: [0.1, 0.2]}"], "from dense to sparse, each once"),
        (["method=at_init", "pruning={densities: [0.1], rate: 0.3}"], "leave rate out"),
        (["method=at_init", "pruning={densities: [0.1], levels: 3}"], "leave levels out"),
        (["method=at_init", "pruning={after: finetune}"], "at_init prunes before it trains"),
        (["pruning={rounds: 3}"], "belongs to methods at_init and dynamic, not to imp"),
        (["pruning={allocation: er, scope: global}"], "er belongs to scope: layer"),
        (["pruning={allocation: erk, output_rate: 0.1}"], "leave rates and output_rate out"),
        (["method=gradual", "pruning={densities: [0.2, 0.1]}"], "make a run for each"),
        (["pruning={criterion: obs}"], "use method: oneshot"),
        (["method=early_bird", "pruning={criterion: snip}"], "looks at examples, which a search does not"),
        (["pruning={examples: 10}"], "'magnitude' looks at no examples"),
        (["method=at_init", "pruning={after: reinit, rewind: 5it}"], "reinit trains from the beginning"),
        (["method=early_bird", "pruning={densities: [0.2]}"], "early_bird.densities"),
    ],
)
def test_what_a_method_cannot_follow_is_told(tiny, overrides, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(tiny(*overrides))


def test_two_densities_that_keep_the_same_are_told(tiny, places):
    with pytest.raises(RecipeError, match="keep exactly the same"):
        make_plan(*load_data(tiny("method=at_init", "pruning={densities: [0.1, 0.0999999]}"), places))


@pytest.mark.parametrize("section", ["ignore: [output]", "rates: {fc1: 0.5}", "output_rate: 0.1"])
def test_rounds_remove_the_same_share_of_each_pool(tiny, places, section):
    pruning = f"pruning={{criterion: snip, densities: [0.01], rounds: 10, {section}}}"
    plan = make_plan(*load_data(tiny("method=at_init", pruning), places))
    ends = plan.keeps(1)
    ways = [plan.keeps_on_the_way(1, at / 10) for at in range(1, 11)]
    for size, end, *found in zip(plan.keeps(0), ends, *ways, strict=True):
        assert found[-1] == end and found == sorted(found, reverse=True)
        assert found[4] == pytest.approx((size * end) ** 0.5, abs=1)


def test_rounds_by_shape_never_ask_for_more_than_is_left(tiny, places):
    pruning = "pruning={criterion: random, densities: [0.01], rounds: 1000, allocation: er}"
    plan = make_plan(*load_data(tiny("method=at_init", pruning), places))
    ways = [plan.keeps_on_the_way(1, at / 1000) for at in range(1, 1001)]
    assert all(after <= before for one, other in pairwise(ways) for before, after in zip(one, other, strict=True))


def test_a_criterion_that_knows_nothing_before_training_is_told(pruned):
    with pytest.raises(FailedRun, match=r"'movement' says the same of all weights before training; .* prune later"):
        pruned("method=at_init", "pruning={criterion: movement, densities: [0.5]}")


def test_networks_with_batch_norm_are_pruned_before_and_early_in_training(pruned):
    model = "model={name: resnet_20}"
    for criterion, rewind in (("synflow", "0it"), ("synflow", "4it"), ("snip", "0it"), ("grasp", "0it")):
        store, _ = pruned(
            "method=at_init", model, "data={name: digits, validation: 200}", "train={steps: 6it, batch_size: 16}",
            f"pruning={{criterion: {criterion}, scope: global, densities: [0.2], examples: 101, rewind: {rewind}}}",
            folder=f"{criterion}{rewind}",
        )  # fmt: skip
        mask = store.read_ticket(1, 1).mask
        assert remaining(mask) == pytest.approx(0.2 * sum(kept.numel() for kept in mask.values()), abs=1)
        first = next(iter(mask.values())).flatten()
        assert not first.int().diff().ge(0).all(), "not by position"


def test_layers_that_the_surgeon_cannot_treat_are_told_before_training(tiny, places):
    with pytest.raises(RecipeError, match="optimal brain surgeon is for linear layers"):
        obs = "pruning={criterion: obs, levels: 1}"
        make_plan(
            *load_data(
                tiny("method=oneshot", obs, "model={name: lenet_300_100, options: {widths: {fc1: 5000}}}"), places
            )
        )
