import pytest
import torch

from ticketlab.errors import PruningError
from ticketlab.pruning.criteria import Evidence, criteria

MEASURED = ("gradient", "hessian_gradient", "flow_gradient", "squared_gradient", "inverse_hessian", "curvature")


def evidence(weight):
    return Evidence(
        initial=torch.randn_like(weight),
        generator=torch.Generator().manual_seed(0),
        flips=torch.randint(0, 9, weight.shape),
        magnitude_rank=torch.rand(weight.shape, dtype=torch.float64),
        steadiness_rank=torch.rand(weight.shape, dtype=torch.float64),
        **{name: torch.rand(weight.shape, dtype=torch.float64) for name in MEASURED},
    )


@pytest.mark.parametrize("name", list(criteria))
def test_every_criterion_gives_a_finite_number_per_weight(name):
    weight = torch.randn(4, 3)
    saliency = criteria.find(name)(weight, evidence(weight))
    assert saliency.shape == weight.shape
    assert saliency.isfinite().all()


@pytest.mark.parametrize("name", [name for name in criteria if "generator" not in criteria.needs(name)])
def test_saliency_does_not_depend_on_the_order_of_weights(name):
    weight = torch.randn(12)
    known = evidence(weight)
    order = torch.randperm(12)
    moved = Evidence(
        initial=known.initial[order],
        flips=known.flips[order],
        magnitude_rank=known.magnitude_rank[order],
        steadiness_rank=known.steadiness_rank[order],
        **{name: getattr(known, name)[order] for name in MEASURED},
    )
    assert torch.equal(criteria.find(name)(weight, known)[order], criteria.find(name)(weight[order], moved))


def test_magnitude_ignores_the_sign():
    weight = torch.tensor([-3.0, 0.5, 2.0])
    assert criteria.find("magnitude")(weight, Evidence()).tolist() == [3.0, 0.5, 2.0]


def test_magnitude_increase_compares_with_the_rewind_step():
    known = Evidence(initial=torch.tensor([-1.0, 1.0, 0.0]))
    weight = torch.tensor([-3.0, 0.5, -2.0])
    assert criteria.find("magnitude_increase")(weight, known).tolist() == [2.0, -0.5, 2.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    # w₀ = 1, -2, 0.5, -1 became w = 3, -1, -0.25, 2: grew; shrank; changed sign, a little; changed sign, far
    [
        ("large_init", [1.0, 2.0, 0.5, 1.0]),
        ("small_final", [-3.0, -1.0, -0.25, -2.0]),
        ("movement", [2.0, 1.0, 0.75, 3.0]),
        ("large_final_same_sign", [3.0, 1.0, -0.25, -2.0]),
        ("magnitude_increase_same_sign", [2.0, -1.0, -0.75, -3.0]),
    ],
)
def test_criteria_of_supermasks_equal_the_values_worked_out_by_hand(name, expected):
    known = Evidence(initial=torch.tensor([1.0, -2.0, 0.5, -1.0]))
    assert criteria.find(name)(torch.tensor([3.0, -1.0, -0.25, 2.0]), known).tolist() == expected


def test_random_saliency_is_the_same_for_the_same_seed():
    def draw(seed):
        return criteria.find("random")(torch.zeros(50), Evidence(generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("name", [name for name in criteria if criteria.needs(name)])
def test_a_criterion_without_its_evidence_says_so(name):
    with pytest.raises(PruningError, match="needs"):
        criteria.find(name)(torch.zeros(2), Evidence())


def test_extrapolated_is_the_magnitude_that_a_weight_is_on_its_way_to():
    """A quarter done, root of the steps: the way so far counts twice: 1 + 2·0.5, 1 - 2·1, 0 - 2·0.25."""
    weight, start = torch.tensor([1.5, 0.0, -0.25]), torch.tensor([1.0, 1.0, 0.0])
    found = criteria.find("extrapolated")(weight, Evidence(initial=start, progress=0.25))
    assert found.tolist() == [2.0, 1.0, 0.5]
    further = criteria.find("extrapolated")(weight, Evidence(initial=start, progress=0.25), power=1.0)
    assert further.tolist() == [3.0, 3.0, 1.0]


def test_extrapolated_is_magnitude_at_the_end_and_at_the_start():
    weight = torch.randn(50)
    for progress in (1.0, 0.0):
        known = Evidence(initial=torch.randn(50), progress=progress)
        assert torch.equal(criteria.find("extrapolated")(weight, known), weight.abs())


@pytest.mark.parametrize(
    ("p", "expected"),
    # |-3|^p / 3, |-0.25|^p / 1, |0.25|^p / 2, |4|^p / 1
    [
        (1.0, [1.0, 0.25, 0.125, 4.0]),
        (2.0, [3.0, 0.0625, 0.03125, 16.0]),
        (0.5, [0.5773502691896257, 0.5, 0.25, 2.0]),
        (0.0, [1 / 3, 1.0, 0.5, 1.0]),
    ],
)
def test_flipout_equals_the_value_worked_out_by_hand(p, expected):
    known = Evidence(flips=torch.tensor([2, 0, 1, 0], dtype=torch.int16))
    weight = torch.tensor([-3.0, -0.25, 0.25, 4.0])
    assert criteria.find("flipout")(weight, known, p=p).tolist() == pytest.approx(expected, rel=1e-12)


def test_flipout_keeps_the_order_of_weights_whose_squares_leave_single_precision():
    weight = torch.tensor([1e-30, 2e-30, -3e-30])
    saliency = criteria.find("flipout")(weight, Evidence(flips=torch.zeros(3)), p=2.0)
    assert saliency.argsort().tolist() == [0, 1, 2] and (saliency > 0).all()


def test_hybrid_lies_between_magnitude_and_steadiness():
    known = Evidence(
        magnitude_rank=torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),
        steadiness_rank=torch.tensor([0.8, 0.4, 0.2], dtype=torch.float64),
    )
    weight = torch.zeros(3)
    # by hand: 0.75 · 0.1 + 0.25 · 0.8 and so on
    assert criteria.find("hybrid")(weight, known, mix=0.25).tolist() == pytest.approx([0.275, 0.475, 0.725])
    assert criteria.find("hybrid")(weight, known, mix=0.0).tolist() == [0.1, 0.5, 0.9]
    assert criteria.find("hybrid")(weight, known, mix=1.0).tolist() == [0.8, 0.4, 0.2]


@pytest.mark.parametrize(("name", "options"), [("flipout", {"p": -1.0}), ("hybrid", {"mix": 1.5})])
def test_an_option_out_of_range_is_refused(name, options):
    weight = torch.ones(2)
    with pytest.raises(PruningError, match=f"{next(iter(options))} is a number from"):
        criteria.find(name)(weight, evidence(weight), **options)


@pytest.mark.parametrize(
    ("name", "evidence", "expected"),
    [
        ("snip", {"gradient": [2.0, -1.0, 0.5]}, [2.0, 3.0, 1.0]),
        ("grasp", {"hessian_gradient": [2.0, -1.0, 0.5]}, [-2.0, -3.0, 1.0]),
        ("synflow", {"flow_gradient": [2.0, 1.0, 0.5]}, [2.0, 3.0, 1.0]),
        ("obd", {"curvature": [2.0, 1.0, 0.5]}, [1.0, 4.5, 1.0]),
        ("fisher", {"squared_gradient": [2.0, 1.0, 0.5]}, [1.0, 4.5, 1.0]),
        ("obs", {"inverse_hessian": [0.5, 1.0, 2.0]}, [1.0, 4.5, 1.0]),
    ],
)
def test_criteria_with_gradients_follow_their_formulas(name, evidence, expected):
    known = Evidence(**{kind: torch.tensor(values, dtype=torch.float64) for kind, values in evidence.items()})
    assert criteria.find(name)(torch.tensor([-1.0, 3.0, 2.0]), known).tolist() == expected
    with pytest.raises(PruningError, match=f"{name} needs"):
        criteria.find(name)(torch.zeros(2), Evidence())
