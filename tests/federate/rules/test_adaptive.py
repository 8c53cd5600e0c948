"""Masks that move: FedDST's regrowth by hand, PruneFL's choice against all subsets."""

import itertools
import math

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.adaptive import FedDst, PruneFl, feddst, moved, prunefl, worthwhile
from ticketlab.federate.rules.rule import Answer, Work
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import FederateSection

SETTINGS = FederateSection()


def bits(*values):
    return torch.tensor([values]).bool()


def sparse(values, *kept):
    mask = bits(*kept)
    return Sparse({"w": mask}, {"w": torch.tensor([values]) * mask}, {})


# --- feddst


def after(weight, kept, gradient, count):
    return moved(torch.tensor([weight]), bits(*kept), torch.tensor([gradient]), count).int().tolist()[0]


def test_the_smallest_weight_goes_and_the_removed_one_of_largest_gradient_comes():
    weight, kept, gradient = [5.0, -1.0, 3.0, 0.0, 0.0], [1, 1, 1, 0, 0], [0.0, 9.0, 0.0, 0.2, -0.7]
    assert after(weight, kept, gradient, 0) == [1, 1, 1, 0, 0]
    assert after(weight, kept, gradient, 1) == [1, 0, 1, 0, 1]  # place 1 does not come back for its gradient
    assert after(weight, kept, gradient, 2) == [1, 0, 0, 1, 1]


def test_no_more_move_than_are_removed_and_one_weight_stays():
    assert after([5.0, 1.0, 3.0, 0.0], [1, 1, 1, 0], [0.0, 0.0, 0.0, 1.0], 3) == [1, 0, 1, 1]
    assert after([5.0, 0.0, 0.0, 0.0], [1, 0, 0, 0], [0.0, 1.0, 2.0, 3.0], 1) == [1, 0, 0, 0]
    assert after([5.0, 1.0, 0.0, 0.0], [1, 1, 0, 0], [0.0, 1.0, 2.0, 3.0], 2) == [1, 0, 0, 1]
    assert after([5.0, 1.0], [1, 1], [1.0, 1.0], 1) == [1, 1]


def test_of_equal_weights_the_earlier_goes_and_of_equal_gradients_the_later_comes():
    assert after([2.0, 2.0, 2.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0], [0.0] * 6, 1) == [0, 1, 1, 0, 0, 1]


def test_the_share_that_moves_falls_as_half_a_cosine():
    rule = FedDst(sparse([1.0, 0.0], 1, 0), SETTINGS, ["a"], alpha=0.4, every=5, until=20)
    assert [rule.share(number) for number in (1, 4, 6)] == [0, 0, 0]
    assert rule.share(5) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert rule.share(10) == pytest.approx(0.2)
    assert rule.share(20) == pytest.approx(0, abs=1e-12)
    assert rule.share(25) == 0
    assert rule.order(10, "a").task == {"share": pytest.approx(0.2)}


def test_the_mean_is_over_those_that_keep_a_weight_and_then_the_largest_stay():
    rule = FedDst(sparse([4.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a", "b"])
    told = rule.merge(
        2,
        [
            Answer("a", sparse([2.0, 0.0, 3.0, 0.0], 1, 0, 1, 0), 1),
            Answer("b", sparse([6.0, 1.0, 0, 0], 1, 1, 0, 0), 3),
        ],
    )
    assert rule.network.mask["w"].int().tolist() == [[1, 0, 1, 0]]  # means 5, 1, 3
    assert rule.network.state["w"].tolist() == [[5.0, 0.0, 3.0, 0.0]]
    assert told == {"density": 0.5, "mask_distance": 0.5}


def test_a_mask_of_other_counts_in_a_layer_is_not_accepted():
    rule = FedDst(sparse([4.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a"])
    assert rule.accepts("a", sparse([1.0] * 4, 0, 1, 0, 1)) is None
    assert rule.accepts("a", sparse([1.0] * 4, 1, 1, 1, 0)) == "a mask of other counts"
    assert rule.accepts("a", Sparse({}, {}, {})) == "a mask of other counts"


def work_of(task):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    mask = {name: torch.rand(each.shape) < 0.5 for name, each in full_mask(model).items()}
    features, labels = torch.randn(24, 1, 1, 6), torch.arange(24) % 3
    examples = Examples(features, labels, torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    state = {name: value * mask.get(name, 1) for name, value in model.state_dict().items()}
    settings = FederateSection(batch_size=6)
    return Work(model, Sparse(mask, state, {}), examples, examples.first(0), settings, task, 1)


def test_a_client_moves_as_many_weights_of_each_layer_as_asked():
    work = work_of({"share": 0.3})
    found = feddst(work).network
    for name, before in work.received.mask.items():
        count = int(before.sum())
        assert int(found.mask[name].sum()) == count
        assert int((found.mask[name] & ~before).sum()) == round(0.3 * count)
        assert bool((found.state[name][~found.mask[name]] == 0).all())
        new = found.mask[name] & ~before
        assert bool((found.state[name][new] != 0).all())  # regrown ones are trained before they are sent


def test_a_client_that_moves_nothing_keeps_the_mask():
    work = work_of({"share": 0.0})
    assert feddst(work).network.mask is work.received.mask


# --- prunefl


def ratio(worth, kept, overhead):
    return float(worth[kept].sum()) / (overhead + int(kept.sum()))


@pytest.mark.parametrize("seed", range(12))
def test_no_subset_is_worth_more_for_its_cost(seed):
    generator = torch.Generator().manual_seed(seed)
    worth, weight = torch.rand(10, generator=generator).double() ** 3, torch.randn(10, generator=generator)
    kept = torch.zeros(10, dtype=torch.bool)
    kept[torch.randperm(10, generator=generator)[:6]] = True
    overhead, free = float(seed), 0.5
    found = worthwhile({"w": weight}, {"w": kept}, {"w": worth}, free, overhead)["w"]
    # of six weights three are free: the smallest; the others must stay
    sizes = torch.where(kept, weight.abs(), -torch.inf)
    stays = torch.zeros(10, dtype=torch.bool)
    stays[sizes.topk(3).indices] = True
    assert bool((found | ~stays).all())
    loose = (~stays).nonzero().flatten()
    best = 0.0
    for chosen in itertools.product([False, True], repeat=len(loose)):
        candidate = stays.clone()
        candidate[loose] = torch.tensor(chosen)
        best = max(best, ratio(worth, candidate, overhead))
    assert ratio(worth, found, overhead) == pytest.approx(best, rel=1e-12)


def test_a_choice_by_hand():
    # stays: place 0; then Γ = 4 / (1 + 1) = 2: 3 > 2 is added, Γ = 7/3; 2.5 > 7/3 is added, Γ = 9.5/4; 2 is not
    worth, weight = torch.tensor([[4.0, 2.5, 3.0, 2.0]]), torch.tensor([[9.0, 1.0, 0.0, 0.0]])
    found = worthwhile({"w": weight}, {"w": bits(1, 1, 0, 0)}, {"w": worth}, 0.5, 1.0)
    assert found["w"].int().tolist() == [[1, 1, 1, 0]]


def test_a_weight_worth_exactly_the_mean_is_not_added():
    found = worthwhile(
        {"w": torch.tensor([[9.0, 0.0]])}, {"w": bits(1, 0)}, {"w": torch.tensor([[2.0, 1.0]])}, 0.3, 1.0
    )
    assert found["w"].int().tolist() == [[1, 0]]


def test_layers_are_chosen_together_and_none_is_left_empty():
    state = {"w": torch.tensor([[9.0, 8.0]]), "v": torch.tensor([[0.3, -0.4]])}
    mask = {"w": bits(1, 1), "v": bits(1, 1)}
    worth = {"w": torch.tensor([[5.0, 5.0]]), "v": torch.tensor([[0.0, 0.0]])}
    found = worthwhile(state, mask, worth, 0.5, 0.0)
    assert found["w"].int().tolist() == [[1, 1]] and found["v"].int().tolist() == [[0, 1]]


def test_gradients_that_are_all_zero_add_nothing():
    found = worthwhile({"w": torch.ones(1, 4)}, {"w": bits(1, 1, 0, 0)}, {"w": torch.zeros(1, 4)}, 0.5, 0.0)
    assert found["w"].int().tolist() == [[0, 1, 0, 0]]


def answer(name, values, worth, examples, largest=1.0):
    extra = None if worth is None else Sparse({}, {"w": torch.tensor([worth])}, {"largest": largest})
    return Answer(name, sparse(values, 1, 1, 0, 0), examples, extra)


def test_the_server_averages_and_chooses_anew_where_gradients_were_asked_for():
    rule = PruneFl(sparse([2.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a", "b"], every=2, share=0.6, overhead=1.0)
    assert [rule.order(number, "a").task["gradients"] for number in (1, 2, 3, 4)] == [False, True, False, True]
    rule.merge(1, [answer("a", [2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0], 1)])
    assert rule.network.mask["w"].int().tolist() == [[1, 1, 0, 0]]
    # worth: (1·[4, 0, 4, 0] + 3·[0, 0, 4, 0]) = [4, 0, 16, 0]; place 0 stays: Γ = 2; 16 > 2 comes; 0 does not
    told = rule.merge(
        2, [answer("a", [3.0, 1.0, 0, 0], [4.0, 0, 4, 0], 1), answer("b", [7.0, 1.0, 0, 0], [0.0, 0, 4, 0], 3)]
    )
    assert rule.network.mask["w"].int().tolist() == [[1, 0, 1, 0]]
    assert rule.network.state["w"].tolist() == [[6.0, 0.0, 0.0, 0.0]]
    assert told == {"density": 0.5, "mask_distance": 0.5}


def test_gradients_count_by_their_size_not_by_each_clients_largest():
    rule = PruneFl(sparse([2.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a", "b"], every=1, share=0.6, overhead=1.0)
    # true sums [100, 0, 50.6, 1]: place 0 stays, Γ = 50; 50.6 > 50 comes, Γ = 50.2; 1 does not. As shares it would
    rule.merge(
        1,
        [
            answer("a", [2.0, 1.0, 0, 0], [1.0, 0, 0.5, 0], 1, largest=100.0),
            answer("b", [2.0, 1.0, 0, 0], [0.0, 0, 0.6, 1.0], 1),
        ],
    )
    assert rule.network.mask["w"].int().tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("largest", [None, -1.0, float("nan"), float("inf"), "much"])
def test_gradients_of_no_size_that_can_be_are_left_out(largest):
    rule = PruneFl(sparse([2.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a", "b"], every=1, share=0.6, overhead=1.0)
    rule.merge(
        1,
        [
            answer("a", [2.0, 1.0, 0, 0], [4.0, 0, 16.0, 0], 1),
            answer("b", [2.0, 1.0, 0, 0], [0.0, 9.0, 0, 9.0], 1, largest=largest),
        ],
    )
    assert rule.network.mask["w"].int().tolist() == [[1, 0, 1, 0]]


def test_a_round_in_which_nobody_told_gradients_keeps_the_mask():
    rule = PruneFl(sparse([2.0, 1.0, 0.0, 0.0], 1, 1, 0, 0), SETTINGS, ["a"], every=1)
    rule.merge(1, [answer("a", [3.0, 1.0, 0.0, 0.0], None, 1)])
    assert rule.network.mask["w"].int().tolist() == [[1, 1, 0, 0]]
    assert rule.network.state["w"].tolist() == [[3.0, 1.0, 0.0, 0.0]]


def test_a_client_tells_squared_gradients_of_all_weights_only_when_asked():
    assert prunefl(work_of({"gradients": False})).extra is None
    work = work_of({"gradients": True})
    told = prunefl(work).extra.state
    assert set(told) == set(work.received.mask)
    weights = {name: value.clone().requires_grad_() for name, value in work.received.state.items()}
    logits = torch.func.functional_call(work.model, weights, (work.train.images,))
    loss = torch.nn.functional.cross_entropy(logits, work.train.labels)
    squares = dict(zip(weights, (g**2 for g in torch.autograd.grad(loss, list(weights.values()))), strict=True))
    largest = max(float(squares[name].max()) for name in told)
    for name, value in told.items():
        assert torch.allclose(value, squares[name] / largest, atol=1e-6)
        assert bool((value[~work.received.mask[name]] > 0).any())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FedDst, {"alpha": 0.0}), (FedDst, {"alpha": 1.0}), (FedDst, {"every": 0}), (FedDst, {"until": -1}),
        (PruneFl, {"share": 0.0}), (PruneFl, {"share": 1.0}), (PruneFl, {"halving": 0}), (PruneFl, {"overhead": -1.0}),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(kind, options):
    with pytest.raises(TicketlabError, match=r"rule feddst|rule prunefl|adaptive masks"):
        kind(sparse([1.0, 0.0], 1, 0), SETTINGS, ["a"], **options)
