import pytest

from ticketlab.ticket_figures import against_density, beside_controls, supermasks


def curve(*points):
    return [
        {"density": density, "val_accuracy": {"mean": mean}, "lowest": mean - 0.1, "highest": mean + 0.1}
        for density, mean in points
    ]


def learned(mask, weights):
    return {"mask": mask, "weights": weights, "densities": [0.4, 0.6], "val_accuracy": {"mean": 0.95}}


RECORD = {
    "run": "runs/some",
    "seeds": [0, 1],
    "no_mask": [{"weights": kind, "test_accuracy": {"mean": 0.1}} for kind in ("init", "signed_constant")],
    "one_shot": [
        {"criterion": "large_init", "weights": "init", "curve": curve((0.8, 0.3), (0.2, 0.5))},
        {"criterion": "large_init", "weights": "signed_constant", "curve": curve((0.8, 0.4), (0.2, 0.7))},
    ],
    "learned": [learned("one", "init"), learned("other", "init"), learned("other", "signed_constant")],
}


def network(name, accuracy, step, half=0.01, n=3):
    def about(mean, width):
        return {"mean": mean, "low": mean - width, "high": mean + width, "n": n}

    return {"control": name, "test_accuracy": about(accuracy, half), "early_stop_step": about(step, 100)}


LEVELS = [
    {
        "run": "runs/some",
        "density": density,
        "ticket": network("ticket", accuracy, 300),
        "dense": network("dense", 0.9, 500),
        "controls": [network("reinit", accuracy - 0.02, 700, n=2), network("random_mask", 0.5, 800)],
    }
    for density, accuracy in ((0.5, 0.95), (0.1, 0.85))
]


def drawn(axes):
    """Label → (points, ends of the bars) of each error bar."""
    return {
        bars.get_label(): (
            [tuple(map(float, point)) for point in bars.lines[0].get_xydata()],
            [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()],
        )
        for bars in axes.containers
    }


def test_the_whole_figure_has_accuracy_and_early_stop_of_ticket_controls_and_dense_against_what_remains():
    figure = against_density(LEVELS)
    accuracy, step = (drawn(axes) for axes in figure.axes)
    assert list(accuracy) == list(step) == ["ticket", "reinit", "random mask"]
    # the dense network stands at 100 % and as a line
    assert accuracy["ticket"][0] == [(100, 90), (50, 95), (10, 85)]
    assert accuracy["reinit"][0] == [(50, pytest.approx(93)), (10, pytest.approx(83))]
    assert accuracy["reinit"][1] == [pytest.approx([92, 94]), pytest.approx([82, 84])]
    assert step["ticket"][0] == [(100, 500), (50, 300), (10, 300)]
    assert step["random mask"][1] == [[700, 900]] * 2
    assert [line.get_ydata()[0] for line in (figure.axes[0].get_lines()[0], figure.axes[1].get_lines()[0])] == [90, 500]
    assert figure.axes[0].xaxis_inverted() and "n = 2 to 3" in figure.get_suptitle()


def test_controls_stand_below_the_ticket_and_the_dense_network():
    (axes,) = beside_controls(LEVELS[0]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ticket", "dense", "reinit", "random mask"]
    places = [bars.lines[0].get_xydata()[0].tolist() for bars in axes.containers]
    assert places == [[95, 0], [90, 1], [pytest.approx(93), 2], [50, 3]]
    assert axes.containers[1].lines[2][0].get_segments()[0][:, 0].tolist() == pytest.approx([89, 91])
    assert axes.get_xlabel().endswith("n = 2 to 3")


def test_supermasks_are_drawn_by_weights_and_density():
    panels = supermasks(RECORD).axes
    assert [axes.get_title() for axes in panels] == ["initial weights", "signed constants"]
    first, second = ({line.get_label(): line for line in axes.get_lines()} for axes in panels)
    assert list(first) == ["no mask (test)", "large init", "one", "other"]
    assert list(second) == ["no mask (test)", "large init", "other"]
    assert first["large init"].get_xydata().tolist() == [[80, 30], [20, 50]]
    assert second["large init"].get_xydata().tolist() == [[80, 40], [20, 70]]
    assert first["other"].get_xydata().tolist() == [[pytest.approx(50), 95]]
    assert first["other"].get_color() == second["other"].get_color() != first["one"].get_color()
