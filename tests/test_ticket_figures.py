import pytest

from ticketlab.ticket_figures import supermasks


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
