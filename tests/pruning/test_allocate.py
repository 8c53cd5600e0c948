import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlab.errors import PruningError
from ticketlab.pruning.allocate import Pool, allocate, keep_at, keep_by_shape, keep_count, keep_cubic, make_pools, prune

LENET = {"fc1.weight": 235_200, "fc2.weight": 30_000, "output.weight": 1_000}
# Frankle & Carbin 2019, labels of figure 3 and on
LADDER = [100, 80.04, 64.06, 51.28, 41.05, 32.87, 26.32, 21.07, 16.88, 13.52, 10.83, 8.68, 6.95, 5.57, 4.47, 3.58]


def keep(saliency, kept, count, names=("a",)):
    return allocate(saliency, kept, Pool(tuple(names), 0.2), count)


def test_the_ladder_of_lenet_300_100_is_the_papers():
    pools = make_pools(LENET, "layer", rate=0.2, output_rate=0.1)
    kept = [sum(keep_count(pool, LENET, level) for pool in pools) for level in range(16)]
    assert [round(100 * count / 266_200, 2) for count in kept] == LADDER


def test_counts_are_rounded_to_the_nearest_with_halves_removed():
    pool = Pool(("a",), 0.1)
    assert [keep_count(pool, {"a": 5}, level) for level in range(3)] == [5, 4, 4]  # 0.5 and 0.4 removed
    assert keep_count(Pool(("a",), 0.2), {"a": 10}, 2) == 6  # 10 → 8 → 6.4


def test_a_pool_never_shrinks_below_one_weight_per_layer():
    assert keep_count(Pool(("a", "b"), 0.9), {"a": 4, "b": 3}, 9) == 2


def test_the_least_salient_remaining_weights_go():
    mask = {"a": torch.tensor([True, True, False, True, True])}
    saliency = {"a": torch.tensor([0.5, 0.1, 9.0, 0.3, 0.2])}
    assert keep(saliency, mask, 2)["a"].tolist() == [True, False, False, True, False]


def test_ties_fall_to_the_earlier_position():
    mask = {"a": torch.ones(5, dtype=torch.bool)}
    assert keep({"a": torch.ones(5)}, mask, 2)["a"].tolist() == [False, False, False, True, True]


def test_layers_compete_in_a_global_pool_but_none_is_emptied():
    mask = {name: torch.ones(3, dtype=torch.bool) for name in ("a", "b")}
    saliency = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([1.0, 2.0, 3.0])}
    assert keep(saliency, mask, 4, "ab")["a"].tolist() == [False, False, True]
    found = keep(saliency, mask, 2, "ab")
    assert (found["a"].tolist(), found["b"].tolist()) == ([False, False, True], [False, False, True])


def test_a_saliency_that_is_no_number_is_refused_unless_the_weight_is_gone_already():
    saliency = {"a": torch.tensor([1.0, float("nan"), 2.0])}
    with pytest.raises(PruningError, match="not finite"):
        keep(saliency, {"a": torch.ones(3, dtype=torch.bool)}, 1)
    assert keep(saliency, {"a": torch.tensor([True, False, True])}, 1)["a"].tolist() == [False, False, True]


def test_counts_that_do_not_exist_are_refused():
    mask = {"a": torch.tensor([True, True, False])}
    with pytest.raises(PruningError, match="cannot keep 3 of 2"):
        keep({"a": torch.ones(3)}, mask, 3)
    with pytest.raises(PruningError, match="cannot keep 0"):
        keep({"a": torch.ones(3)}, mask, 0)


def test_the_given_saliency_is_left_as_it_was():
    saliency = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    keep(saliency, {"a": torch.ones(2, dtype=torch.bool)}, 1)
    assert saliency["a"].tolist() == [1.0, 2.0]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(0, 3), min_size=4, max_size=40),
    kept=st.data(),
)
def test_counts_are_exact_and_what_remains_is_never_less_salient(values, kept):
    """Against a plain sort, with many ties, over two layers."""
    saliency = torch.tensor(values, dtype=torch.float32)
    half = len(values) // 2
    mask = torch.tensor(kept.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    mask[0] = mask[half] = True
    count = kept.draw(st.integers(2, int(mask.sum())))
    parts = {"a": saliency[:half], "b": saliency[half:]}
    masks = {"a": mask[:half], "b": mask[half:]}
    found = keep(parts, masks, count, "ab")
    chosen = torch.cat([found["a"], found["b"]])
    assert int(chosen.sum()) == count
    assert not (chosen & ~mask).any()
    assert found["a"].any() and found["b"].any()
    ranked = sorted((value, index) for index, value in enumerate(values) if mask[index])
    best = {max((v, i) for v, i in ranked if i < half)[1], max((v, i) for v, i in ranked if i >= half)[1]}
    free = [index for _, index in ranked if index not in best]
    expected = best | set(free[len(free) - (count - 2) :] if count > 2 else [])
    assert set(chosen.nonzero().squeeze(1).tolist()) == expected


def test_pools_follow_scope_rates_and_the_ignore_list():
    sizes = {"conv1.weight": 10, "conv2.weight": 10, "fc1.weight": 10, "output.weight": 10}
    assert make_pools(sizes, "global", 0.2) == [Pool(tuple(sizes), 0.2)]
    assert make_pools(sizes, "layer", 0.2, 0.1, {"conv*": 0.15}) == [
        Pool(("conv1.weight",), 0.15),
        Pool(("conv2.weight",), 0.15),
        Pool(("fc1.weight",), 0.2),
        Pool(("output.weight",), 0.1),
    ]
    assert make_pools(sizes, "global", 0.2, 0.0, ignore=["conv1"]) == [
        Pool(("conv2.weight", "fc1.weight"), 0.2),
        Pool(("conv1.weight",), 0.0),
        Pool(("output.weight",), 0.0),
    ]


def test_a_pattern_that_fits_no_layer_is_an_error():
    with pytest.raises(PruningError, match="no layer is called 'conv\\*'"):
        make_pools(LENET, "layer", 0.2, rates={"conv*": 0.1})


def test_pruning_goes_pool_by_pool_and_keeps_the_order_of_layers():
    mask = {"x": torch.ones(4, dtype=torch.bool), "y": torch.ones(4, dtype=torch.bool)}
    saliency = {"x": torch.arange(4.0), "y": torch.arange(4.0).flip(0)}
    found = prune(saliency, mask, [Pool(("y",), 0.5), Pool(("x",), 0.25)], [2, 3])
    assert list(found) == ["x", "y"]
    assert found["x"].tolist() == [False, True, True, True]
    assert found["y"].tolist() == [True, True, False, False]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.data())
def test_the_selection_is_what_a_stable_sort_gives(numbers, data):
    """Few different numbers, so that there are ties; sorted independently with Python's own stable sort."""
    alive = data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers)).filter(any))
    count = data.draw(st.integers(1, sum(alive)))
    kept = keep({"a": torch.tensor(numbers, dtype=torch.float32)}, {"a": torch.tensor(alive)}, count)["a"].tolist()
    order = sorted((number, index) for index, number in enumerate(numbers) if alive[index])
    assert [index for index, stays in enumerate(kept) if stays] == sorted(i for _, i in order[len(order) - count :])


def test_a_density_is_kept_exactly_by_pools_of_the_common_rate():
    pools = make_pools(LENET, "layer", 0.2)
    assert [keep_at(pool, LENET, 0.05, 0.2) for pool in pools] == [11_760, 1_500, 50]
    assert keep_at(Pool(("a",), 0.2), {"a": 5}, 0.5, 0.2) == 3  # 2.5, rounded up
    assert keep_at(Pool(("a", "b"), 0.2), {"a": 5, "b": 5}, 0.01, 0.2) == 2
    assert keep_at(Pool(("a",), 0.0), {"a": 5}, 0.01, 0.2) == 5


def test_a_pool_with_its_own_rate_is_pruned_as_often_as_the_others():
    """0.8³ = 0.512: three times; at rate 0.1 three times leave 0.729."""
    assert keep_at(Pool(("a",), 0.1), {"a": 1000}, 0.512, 0.2) == 729


def test_a_cubic_schedule_ends_where_it_is_told():
    # 100 − 90 · (1 − (1 − l/2)³): 100, 21.25, 10
    assert [keep_cubic(Pool(("a",), 0.2), {"a": 100}, 10, level, 2) for level in range(3)] == [100, 21, 10]


def test_small_layers_keep_more_of_their_weights():
    # (2 + 8) + (4 + 2) + (1 + 4) = 21 parts for 10 weights: 4.76, 2.86, 2.38; the remainders .86 and .76 are rounded up
    shapes = {"a": (2, 8), "b": (4, 2), "c": (1, 4)}
    assert keep_by_shape(shapes, 10, with_kernel=False) == {"a": 5, "b": 3, "c": 2}


def test_kernels_count_with_their_sides_or_with_their_area():
    shapes = {"conv": (2, 2, 3, 3), "fc": (6, 10)}
    # with sides 10 and 16 parts of 26; without 4 · 9 = 36 and 16 of 52
    assert keep_by_shape(shapes, 26, with_kernel=True) == {"conv": 10, "fc": 16}
    assert keep_by_shape(shapes, 26, with_kernel=False) == {"conv": 18, "fc": 8}


def test_what_a_small_layer_cannot_hold_goes_to_the_others():
    # parts 11 and 101, of 56 weights 5.5 and 50.5; of 100 weights 9.8 and 90.2; of 109 a keeps its 10, b the other 99
    shapes = {"a": (1, 10), "b": (1, 100)}
    assert keep_by_shape(shapes, 56, with_kernel=False) == {"a": 6, "b": 50}
    assert keep_by_shape(shapes, 109, with_kernel=False) == {"a": 10, "b": 99}
    assert keep_by_shape(shapes, 110, with_kernel=False) == {"a": 10, "b": 100}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_counts_by_shape_are_exact_and_fit(shapes, share):
    named = {str(index): shape for index, shape in enumerate(shapes)}
    sizes = {name: rows * columns for name, (rows, columns) in named.items()}
    keep = len(named) + round(share * (sum(sizes.values()) - len(named)))
    found = keep_by_shape(named, keep, with_kernel=False)
    assert sum(found.values()) == keep
    assert all(1 <= found[name] <= sizes[name] for name in named)
