"""Flower's strategies on the vector of surviving values, each by hand."""

import math

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.federate.rules.rule import Answer
from ticketlab.federate.strategies import Averaging, from_vector, protect, to_vector
from ticketlab.recipe import FederateSection, PrivacySection

MASK = {"w": torch.tensor([[True, False], [False, True]])}


def network(first, last, bias=0.0):
    """One masked layer of four weights, two of them removed, and a bias."""
    return Sparse(MASK, {"w": torch.tensor([[first, 0.0], [0.0, last]]), "b": torch.tensor([bias])}, {})


def answers(*values, examples=None):
    sizes = examples or [1] * len(values)
    return [Answer(f"c{at}", network(*each), size) for at, (each, size) in enumerate(zip(values, sizes, strict=True))]


def averaged(given, before=None, **section):
    return Averaging(FederateSection(**section)).merge(1, before or network(0.0, 0.0), given)


def test_a_vector_holds_surviving_values_tensor_by_tensor_and_no_counters():
    state = {
        "conv.weight": torch.arange(8.0).view(2, 1, 2, 2),
        "norm.running_mean": torch.tensor([10.0, 11.0]),
        "norm.num_batches_tracked": torch.tensor(7),
        "scalar": torch.tensor(12.0),
        "double": torch.tensor([13.0], dtype=torch.float64),
    }
    kept = torch.tensor([0, 1, 0, 0, 0, 0, 1, 1]).bool().view(2, 1, 2, 2)
    given = Sparse({"conv.weight": kept}, state, {})
    vector = to_vector(given)
    assert vector.dtype == "float32"
    assert vector.tolist() == [1.0, 6.0, 7.0, 10.0, 11.0, 12.0, 13.0]
    found = from_vector(vector, given)
    assert list(found) == list(state)
    assert found["conv.weight"].flatten().tolist() == [0, 1, 0, 0, 0, 0, 6, 7]
    for name in ("norm.running_mean", "norm.num_batches_tracked", "scalar", "double"):
        assert torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype
        assert found[name].shape == state[name].shape


def test_a_vector_of_another_length_is_not_taken():
    with pytest.raises(AssertionError, match="more values"):
        from_vector(to_vector(Sparse({}, {"w": torch.ones(5)}, {})), Sparse({}, {"w": torch.ones(4)}, {}))


def test_a_state_made_of_a_vector_shares_no_memory_with_it():
    vector = to_vector(network(1.0, 2.0, 3.0))
    found = from_vector(vector, network(0.0, 0.0))
    vector[:] = 9
    assert found["w"].tolist() == [[1.0, 0.0], [0.0, 2.0]] and found["b"].tolist() == [3.0]


def test_the_mean_is_weighted_by_examples():
    found = averaged(answers((1.0, 2.0, 3.0), (5.0, 2.0, -1.0), examples=[1, 3]))
    assert found["w"].tolist() == [[4.0, 0.0], [0.0, 2.0]]  # (1 + 3·5) / 4
    assert found["b"].tolist() == [0.0]  # (3 − 3) / 4


def test_whole_numbers_are_the_largest_clients():
    states = [{"w": torch.ones(2), "count": torch.tensor(count)} for count in (5, 9, 6)]
    given = [Answer(str(n), Sparse({}, state, {}), n) for state, n in zip(states, (2, 4, 3), strict=True)]
    found = Averaging(FederateSection()).merge(1, Sparse({}, states[0], {}), given)
    assert found["count"].item() == 9 and found["count"].dtype == torch.int64


def test_the_median_ignores_examples_and_one_wild_client():
    given = answers((1.0, -1.0), (2.0, -2.0), (1e6, -1e6), examples=[1, 1, 1000])
    assert averaged(given, aggregate="median")["w"].tolist() == [[2.0, 0.0], [0.0, -2.0]]


def test_a_fifth_is_cut_off_at_each_end_before_the_mean():
    given = answers((-1e6, 0.0), (1.0, 1.0), (2.0, 1.0), (6.0, 4.0), (1e6, 100.0))
    found = averaged(given, aggregate="trimmed_mean")["w"]
    assert found.tolist() == [[3.0, 0.0], [0.0, 2.0]]  # (1 + 2 + 6) / 3, (1 + 1 + 4) / 3


def test_two_rounds_of_server_momentum_by_hand():
    averaging = Averaging(FederateSection(server_lr=0.5, server_momentum=0.8))
    first = averaging.merge(1, network(1.0, 1.0), answers((3.0, 0.0), (5.0, 0.0)))
    # update = before − mean = (−3, 1); momentum (−3, 1); w = (1, 1) − 0.5 · momentum
    assert first["w"].diagonal().tolist() == pytest.approx([2.5, 0.5])
    second = averaging.merge(2, Sparse(MASK, first, {}), answers((2.5, 0.5), (2.5, 0.5)))
    # update 0; momentum 0.8 · (−3, 1) = (−2.4, 0.8); w = (2.5, 0.5) + (1.2, −0.4)
    assert second["w"].diagonal().tolist() == pytest.approx([3.7, 0.1])
    assert second["w"][~MASK["w"]].tolist() == [0.0, 0.0]


def test_a_server_step_without_momentum_goes_part_of_the_way():
    found = averaged(answers((3.0, 0.0)), network(1.0, 1.0), server_lr=0.25)
    assert found["w"].diagonal().tolist() == [1.5, 0.75]


def test_momentum_is_remembered_and_forgotten_when_it_begins_anew():
    settings = FederateSection(server_momentum=0.5)
    one, start = Averaging(settings), network(1.0, 1.0)
    after = Sparse(MASK, one.merge(1, start, answers((2.0, 1.0))), {})
    memory = one.memory()
    assert memory.tensors["momentum"].tolist() == [-1.0, 0.0, 0.0]
    other = Averaging(settings)
    other.recall_(after, memory)
    still = answers((2.0, 1.0))
    assert one.merge(2, after, still)["w"][0, 0].item() == other.merge(2, after, still)["w"][0, 0].item() == 2.5
    other.begin_anew_()
    assert other.memory().tensors == {}
    assert other.merge(3, after, still)["w"][0, 0].item() == 2.0


# --- privacy


def large(value):
    """A network of 40,000 weights, a quarter of which remain."""
    kept = torch.arange(40_000).view(200, 200) % 4 == 0
    return Sparse({"w": kept}, {"w": torch.where(kept, value, 0.0)}, {})


def test_central_privacy_clips_each_update_to_the_norm():
    # noise far below what is looked at; updates (3, 4) of norm 5 → (0.6, 0.8) · 2, and (0.3, 0.4) of 0.5 stays
    privacy = PrivacySection(clip=2.0, noise=1e-9)
    found = averaged(answers((4.0, 5.0, 1.0), (1.3, 1.4, 1.0)), network(1.0, 1.0, 1.0), privacy=privacy)
    expected = [1 + (1.2 + 0.3) / 2, 1 + (1.6 + 0.4) / 2]
    assert found["w"].diagonal().tolist() == pytest.approx(expected, abs=1e-5)
    assert found["b"].tolist() == pytest.approx([1.0], abs=1e-6)


def test_all_clients_count_the_same_under_privacy():
    privacy = PrivacySection(clip=100.0, noise=1e-9)
    found = averaged(answers((1.0, 0.0), (3.0, 0.0), examples=[1, 1000]), privacy=privacy)
    assert found["w"][0, 0].item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["central", "central_client", "local"])
def test_a_client_whose_network_has_not_changed_is_clipped_too(kind):
    privacy = PrivacySection(kind=kind, clip=2.0, noise=1e-9)
    before = network(0.0, 5.0, 1.0)
    sent = protect(before, before, privacy)
    if kind == "local":
        assert not torch.equal(sent.state["w"], before.state["w"])
        return
    found = averaged([Answer("c", sent, 3)], before, privacy=privacy)
    assert found["w"].diagonal().tolist() == pytest.approx([0.0, 5.0], abs=1e-5)


@pytest.mark.parametrize("kind", ["central", "central_client"])
def test_the_means_noise_has_the_deviation_of_the_formula_and_only_where_weights_remain(kind):
    before = large(1.0)
    privacy = PrivacySection(kind=kind, clip=3.0, noise=2.0)
    given = [Answer(f"c{at}", before, 5) for at in range(4)]
    found = Averaging(FederateSection(privacy=privacy)).merge(1, before, given)["w"]
    noise = found[before.mask["w"]] - 1
    # 10,000 values: the deviation is known to 0.7 %, the mean to a hundredth of it; five of these
    assert noise.std().item() == pytest.approx(2.0 * 3.0 / 4, rel=0.035)
    assert abs(noise.mean().item()) < 5 * 1.5 / 100
    assert bool((found[~before.mask["w"]] == 0).all())


def test_a_client_under_central_client_privacy_clips_and_adds_nothing():
    privacy = PrivacySection(kind="central_client", clip=2.0)
    sent = protect(network(4.0, 5.0, 1.0), network(1.0, 1.0, 1.0), privacy)
    assert sent.state["w"].diagonal().tolist() == pytest.approx([2.2, 2.6])  # 1 + (3, 4) · 2/5
    assert sent.state["b"].tolist() == [1.0] and sent.mask is MASK
    short = protect(network(1.3, 1.4, 1.0), network(1.0, 1.0, 1.0), privacy)
    assert short.state["w"].diagonal().tolist() == pytest.approx([1.3, 1.4])


def test_a_client_under_central_privacy_sends_what_it_has():
    given = network(4.0, 5.0)
    assert protect(given, network(1.0, 1.0), PrivacySection(kind="central", clip=0.1)) is given


def test_local_noise_has_the_deviation_that_the_recipe_describes():
    privacy = PrivacySection(kind="local", clip=0.5, epsilon=0.8, delta=1e-4)
    before = large(1.0)
    sent = protect(before, before, privacy).state["w"]
    noise = sent[before.mask["w"]] - 1
    expected = 2 * 0.5 * math.sqrt(2 * math.log(1.25 / 1e-4)) / 0.8
    assert noise.std().item() == pytest.approx(expected, rel=0.035)
    assert abs(noise.mean().item()) < 5 * expected / 100
    assert bool((sent[~before.mask["w"]] == 0).all())


def test_a_local_update_is_clipped_before_the_noise():
    before, after = large(0.0), large(3.0)  # an update of norm 3 · 100
    privacy = PrivacySection(kind="local", clip=100.0, epsilon=1.0, delta=0.5)
    sent = protect(after, before, privacy).state["w"][before.mask["w"]]
    deviation = 200 * math.sqrt(2 * math.log(2.5))
    assert abs(sent.mean().item() - 1.0) < 5 * deviation / 100  # noise drowns it here …
    quiet = PrivacySection.model_construct(kind="local", clip=100.0, epsilon=1e7, delta=0.5)
    sent = protect(after, before, quiet).state["w"][before.mask["w"]]
    assert sent.mean().item() == pytest.approx(1.0, abs=1e-4)  # … and not with an ε that recipes do not allow


def test_the_server_adds_no_noise_of_its_own_to_local_privacy():
    privacy = PrivacySection(kind="local", epsilon=0.5)
    found = averaged(answers((2.0, 4.0), (4.0, 4.0)), privacy=privacy)
    assert found["w"].diagonal().tolist() == [3.0, 4.0]


def test_what_privacy_cost_is_told_of_all_rounds_or_of_each_answer():
    central = Averaging(FederateSection(privacy=PrivacySection(noise=1.0)))
    assert central.spent()["epsilon"] == 0
    for number in range(10):
        central.merge(number, network(0.0, 0.0), answers((0.0, 0.0)))
    assert central.spent() == {
        "kind": "central", "epsilon": pytest.approx(17.8566, abs=1e-4), "delta": 1e-5, "of": "all rounds",
    }  # fmt: skip
    again = Averaging(central.settings)
    again.recall_(network(0.0, 0.0), central.memory())
    assert again.spent() == central.spent()
    local = Averaging(FederateSection(privacy=PrivacySection(kind="local", epsilon=0.25)))
    local.merge(1, network(0.0, 0.0), answers((0.0, 0.0)))
    assert local.spent() == {"kind": "local", "epsilon": 0.25, "delta": 1e-5, "of": "each answer"}
    assert Averaging(FederateSection()).spent() == {}
