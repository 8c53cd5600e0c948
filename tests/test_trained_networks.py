from support import level

from ticketlab.trained_networks import run_networks


def test_a_level_of_iterative_pruning_costs_all_levels_before_it(make_run):
    store = make_run("imp", [level(1, n, 0.9 - n / 100) for n in range(4)])
    networks = run_networks(store)
    assert [(n.density, n.flops, n.remaining_flops, n.seconds) for n in networks] == [
        (1.0, 100.0, 50.0, 2.0), (0.5, 200.0, 100.0, 4.0), (0.25, 300.0, 150.0, 6.0), (0.125, 400.0, 200.0, 8.0)
    ]  # fmt: skip
    assert {n.seed for n in networks} == {7}


def test_a_level_of_one_shot_pruning_costs_the_dense_network_and_itself(make_run):
    store = make_run("oneshot", [level(1, n, 0.9) for n in range(4)], "method=oneshot")
    assert [n.flops for n in run_networks(store)] == [100.0, 200.0, 200.0, 200.0]


def test_of_a_network_pruned_in_training_the_last_level_counts_with_the_cost_of_all(make_run):
    store = make_run("gradual", [level(1, n, 0.9) for n in range(4)], "method=gradual", "pruning.levels=3")
    assert [(n.density, n.flops, n.seconds) for n in run_networks(store)] == [(0.125, 400.0, 8.0)]
    unfinished = make_run("half", [level(1, n, 0.9) for n in range(3)], "method=gradual", "pruning.levels=3")
    assert run_networks(unfinished) == []


def test_records_from_before_operations_were_counted_have_none(make_run):
    store = make_run("old", [level(1, 0, 0.9, flops=None, effective_density=None), level(1, 1, 0.9)])
    assert [(n.flops, n.effective_density) for n in run_networks(store)] == [(None, None), (None, 0.25)]
