import pytest
from support import level

from ticketlab.errors import TicketlabError
from ticketlab.listing import Line, fitting, line, ordered

DENSE = Line("runs/dense", method="imp", density=1.0, test_accuracy=0.97, replicates=2)
SPARSE = Line("runs/sparse", method="imp", density=0.05, test_accuracy=0.96, replicates=5, updated="2026-11-22T08:00")
EARLY = Line("runs/early", method="early_bird", density=0.2, test_accuracy=0.98, updated="2026-11-20T08:00")
BROKEN = Line("runs/broken")
LINES = [DENSE, SPARSE, EARLY, BROKEN]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ([], LINES),
        (["density<0.1"], [SPARSE]),
        (["density < 10%"], [SPARSE]),
        (["density<=0.2"], [SPARSE, EARLY]),
        (["method=imp"], [DENSE, SPARSE]),
        (["method!=imp"], [EARLY]),
        (["method=imp", "replicates>=5"], [SPARSE]),
        (["updated>2026-11-21"], [SPARSE]),
        (["state=damaged", "density>0"], [DENSE, SPARSE, EARLY]),
    ],
)
def test_runs_fit_where_every_condition_holds_and_what_is_unknown_fits_none(conditions, kept):
    assert fitting(LINES, conditions) == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("densty<0.1", r"no field 'densty'; did you mean 'density'\?"),
        ("density<few", "density is a number, 'few' is none"),
        ("density", "write it as FIELD<VALUE, such as density<0.1"),
    ],
)
def test_a_condition_that_says_nothing_is_an_error(condition, message):
    with pytest.raises(TicketlabError, match=message):
        fitting(LINES, [condition])


def test_a_run_is_listed_with_its_sparsest_common_level(make_run):
    early_bird = [level(1, 0, 0.9), level(1, 1, 0.8, density=0.2), level(1, 2, 0.7, density=0.5)]
    other = [level(2, 0, 0.9), level(2, 1, 0.6, density=0.2), level(2, 2, 0.6, density=0.5), level(2, 3, 0.1)]
    found, problem = line(make_run("twice", [*early_bird, *other], kind="prune", recipe="twice"))
    assert problem is None
    assert (found.kind, found.recipe, found.model, found.method) == ("prune", "twice", "lenet_300_100", "imp")
    assert (found.replicates, found.levels, found.density) == (2, 3, 0.2)
    assert found.test_accuracy == pytest.approx(0.7) and found.seconds == 14.0


def test_the_largest_stands_last_and_what_is_unknown_first():
    assert ordered(LINES, "test_accuracy") == [BROKEN, SPARSE, DENSE, EARLY]
    assert ordered(LINES, "-test_accuracy") == [BROKEN, EARLY, DENSE, SPARSE]
    assert ordered(LINES, None) == LINES
    with pytest.raises(TicketlabError, match=r"--sort accuracy: no such field; did you mean 'test_accuracy'\?"):
        ordered(LINES, "accuracy")
