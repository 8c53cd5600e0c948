import pytest
from support import level

from ticketlab import comparison
from ticketlab.comparison import table_rows, verdicts
from ticketlab.errors import RunError
from ticketlab.figures import encode, methods_side_by_side
from ticketlab.trained_networks import run_networks


def compare(stores, against=None):
    return comparison.compare([network for store in stores for network in run_networks(store)], against)


def test_options_at_their_defaults_are_named_where_others_are_not(make_run):
    gradual = ("method=sign_flip", "pruning.criterion=flipout", "pruning.levels=1")
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    stores = [make_run("one", both, *gradual, "pruning.options={p: 1.0}"), make_run("two", both, *gradual)]
    # one of the two counts as common
    assert compare(stores)[0].methods() == ["sign_flip flipout", "sign_flip flipout p=2.0"]


def test_two_networks_in_one_place_are_refused(make_run):
    gradual = ("method=gradual", "pruning.levels=1")
    stores = [make_run(name, [level(1, 0, 0.9), level(1, 1, 0.8)], *gradual) for name in ("one", "two")]
    with pytest.raises(RunError, match="one and two both have a network"):
        compare(stores)


def test_an_edited_plugin_makes_another_method(make_run):
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    stores = [
        make_run(name, both, files={"own/mine.py": digest}) for name, digest in (("a", "1" * 64), ("b", "2" * 64))
    ]
    assert compare(stores)[0].methods() == ["imp magnitude", "imp magnitude own/mine=222222"]


def test_a_penalty_a_rate_or_an_option_that_one_run_has_alone_makes_another_method(make_run):
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    changes = {
        "plain": [], "l0": ["train.sparsify={kind: l0, strength: 0.001}"], "rates": ["pruning.rates={fc1: 0.3}"],
        "wide": ["model.options={widths: {fc1: 500, fc2: 100}}"], "gentle": ["pruning.rates={fc1: 0.1}"],
    }  # fmt: skip
    (found,) = compare([make_run(name, both, "method=oneshot", *change) for name, change in changes.items()])
    assert found.methods() == [
        "oneshot magnitude",
        "oneshot magnitude sparsify=l0",
        "oneshot magnitude rates=fc1 0.3",
        "oneshot magnitude options=widths fc1 500, fc2 100",
        "oneshot magnitude rates=fc1 0.1",
    ]


def test_settings_of_other_methods_are_no_part_of_a_name_and_no_baseline_moves_its_mask(make_run):
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    moved = make_run("moved", both, "method=dynamic", "dynamic={grow: random, every: 2it}")
    late = make_run("late", both, "method=gradual", "schedule.shape=cubic", "pruning.levels=1", "train.lr=0.5")
    (found,) = compare([moved, late, make_run("at_init", both, "method=at_init")])
    assert found.methods() == ["gradual magnitude lr=0.5", "dynamic magnitude", "at_init magnitude"]


def test_levels_of_one_run_stay_apart_however_close(make_run):
    store = make_run("fine", [level(1, n, 0.9, density=0.99**n) for n in range(3)])
    other = make_run("other", [level(1, 0, 0.8)], "pruning.criterion=random")
    assert len(compare([store, other])[0].densities()) == 3


def test_a_network_that_loses_weights_at_once_is_no_plain_magnitude(make_run):
    gradual = ("method=gradual", "pruning.levels=1")
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    stores = [
        make_run("first", both, *gradual, "method=sign_flip", "sign_flips.at_once=1"),
        make_run("noisy", both, *gradual, "train.gradient_noise=1"),
        make_run("plain", [level(1, 0, 0.9), level(1, 1, 0.8, density=0.1)], *gradual),
    ]
    assert compare(stores)[0].baseline == "gradual magnitude"


def test_a_name_that_fits_several_methods_is_refused_a_whole_one_is_not(make_run):
    gradual = ("method=gradual", "pruning.levels=1")
    both = [level(1, 0, 0.9), level(1, 1, 0.8)]
    stores = [make_run("noisy", both, *gradual, "train.gradient_noise=1"), make_run("plain", both, *gradual),
              make_run("third", both, *gradual, "pruning.criterion=random")]  # fmt: skip
    assert compare(stores, "gradual magnitude")[0].baseline == "gradual magnitude"
    with pytest.raises(RunError, match="fits several methods: gradual magnitude; gradual magnitude gradient_noise"):
        compare(stores, "gradual m")


def test_seeds_that_never_meet_are_told(make_run):
    stores = two(make_run, (0.85,), ours=(0.8,))
    stores[1] = make_run("far", [level(9, 0, 0.9), level(9, 1, 0.8)], "method=gradual", "pruning.levels=1",
                     "pruning.criterion=random")  # fmt: skip
    assert compare(stores)[0].at("gradual random", 0.5).verdict == "no common seed"


def two(make_run, others, ours=(0.80, 0.82, 0.81)):
    gradual = ("method=gradual", "pruning.levels=1")
    return [
        make_run("base", [level(r, n, a) for r, a in enumerate(ours, 1) for n in (0, 1)], *gradual),
        make_run("other", [level(r, n, a, flops=80.0, seconds=3.0) for r, a in enumerate(others, 1) for n in (0, 1)],
             *gradual, "method=sign_flip", "pruning.criterion=flipout"),
    ]  # fmt: skip


@pytest.mark.parametrize(("others", "verdict"), [
    ((0.85, 0.87, 0.861), "ahead"),
    ((0.70, 0.72, 0.711), "behind"),
    ((0.85, 0.77, 0.83), "level"),
])  # fmt: skip
def test_differences_are_paired_by_seed(make_run, others, verdict):
    found = compare(two(make_run, others))[0]
    assert found.baseline == "gradual magnitude"
    point = found.at("sign_flip flipout", 0.5)
    # 0.05, 0.05, 0.051: mean by hand; accuracy spreads by 0.01, the difference hardly at all
    if verdict == "ahead":
        assert point.minus_baseline.mean == pytest.approx(0.151 / 3)
        assert point.minus_baseline.high - point.minus_baseline.low < 0.01
    assert point.verdict == verdict
    assert (point.flops_ratio, point.seconds_ratio) == (pytest.approx(0.8), pytest.approx(1.5))
    assert verdicts(found) == [f"sign_flip flipout: {verdict} at 50 %; 0.80 × the operations; 1.50 × the seconds"]


def test_one_seed_gives_no_verdict_and_no_baseline_none(make_run):
    stores = two(make_run, (0.9,), ours=(0.8,))
    assert compare(stores)[0].at("sign_flip flipout", 0.5).verdict == "one seed"
    deeper = [level(1, 0, 0.9), level(1, 1, 0.9, density=0.1)]
    stores[1] = make_run("deeper", deeper, "method=gradual", "pruning.levels=1", "pruning.criterion=random")
    assert compare(stores)[0].at("gradual random", 0.1).verdict == "no baseline"


def test_the_baseline_can_be_named_by_method_or_run(make_run):
    stores = two(make_run, (0.85, 0.87, 0.86))
    assert compare(stores, "sign_flip flipout")[0].baseline == "sign_flip flipout"
    assert compare(stores, "other")[0].baseline == "sign_flip flipout"
    with pytest.raises(RunError, match=r"no method or run 'sign_flip flipot'.*did you mean 'sign_flip flipout'"):
        compare(stores, "sign_flip flipot")


def test_data_sets_are_compared_apart(make_run):
    stores = two(make_run, (0.85, 0.87, 0.86))
    stores.append(make_run("elsewhere", [level(1, 0, 0.5)], data="digits"))
    assert [one.data for one in compare(stores)] == ["mnist, lenet_300_100", "digits, lenet_300_100"]


def test_densities_a_hair_apart_count_as_one(make_run):
    gradual = ("method=gradual", "pruning.levels=1")
    stores = [
        make_run("a", [level(1, 0, 0.9), level(1, 1, 0.8, density=0.1000)], *gradual),
        make_run("b", [level(1, 0, 0.9), level(1, 1, 0.8, density=0.0995)], *gradual, "train.lr=0.5"),
    ]
    assert compare(stores)[0].densities() == [0.1]


def test_the_figure_and_the_table_have_every_point(make_run):
    found = compare(two(make_run, (0.85, 0.87, 0.86)))
    figure = methods_side_by_side(found)
    assert [len(axes.containers) for axes in figure.axes] == [2, 2, 2]
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1], "dense on the left"
    assert encode(figure, "png")["png"].startswith(b"\x89PNG")
    rows = table_rows(found[0])
    assert [(row["method"], row["test_accuracy_n"], row["verdict"]) for row in rows] == [
        ("gradual magnitude", 3, "level"), ("sign_flip flipout", 3, "ahead")
    ]  # fmt: skip


def test_close_densities_share_the_column_of_the_most_and_keep_their_own(make_run):
    def run(name, density):
        levels = [level(1, 0, 0.9), level(1, 1, 0.9, density=density)]
        return make_run(name, levels, f"pruning.criterion={name}")

    stores = [run("magnitude", 0.2), run("random", 0.203), run("movement", 0.2)]
    (comparison,) = compare(stores)
    assert comparison.densities() == [1.0, 0.2]
    sparse = [row for row in table_rows(comparison) if row["column"] < 1]
    assert [(row["method"].split()[1], row["column"], row["density"]) for row in sparse] == [
        ("magnitude", 0.2, 0.2), ("random", 0.2, 0.203), ("movement", 0.2, 0.2)
    ]  # fmt: skip


def test_tables_show_the_densities_that_methods_share(make_run):
    ladder = [level(1, n, 0.9, density=density) for n, density in enumerate((1.0, 0.5, 0.2))]
    jump = [level(1, n, 0.8, density=density) for n, density in enumerate((1.0, 0.2))]
    others = [make_run(name, jump, f"pruning.criterion={name}") for name in ("random", "movement")]
    stores = [make_run("a", ladder), *others]
    (comparison,) = compare(stores)
    assert comparison.densities() == [1.0, 0.5, 0.2] and comparison.shared_densities() == [1.0, 0.2]
    (alone,) = compare(stores[:1])
    assert alone.shared_densities() == [1.0, 0.5, 0.2]
