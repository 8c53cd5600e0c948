"""A federation as a whole, by hand."""

import torch

from ticketlab.workflows.federation.exchange import Outcome
from ticketlab.workflows.federation.record import plain_bytes, ratios
from ticketlab.workflows.federation.server import spread


def client(state, up, down):
    return {"state": state, "bytes_up": up, "bytes_down": down}


def test_ratios_are_dense_bytes_over_the_mean_of_those_that_answered():
    rounds = [
        {"clients": [client("ok", 100, 300), client("timeout", 0, 900)]},
        {"clients": [client("ok", 300, 100), client("ok", 200, 200)]},
    ]
    assert ratios(rounds, 1000) == {"up": 5.0, "down": 5.0}
    assert ratios([{"clients": [client("ok", 300, 400)]}], 1000) == {"up": 3.33, "down": 2.5}
    assert ratios([{"clients": [client("offline", 0, 0)]}], 1000) == {"up": None, "down": None}


def test_plain_bytes_are_all_numbers_zeros_too():
    state = {"w": torch.tensor([[0.0, 1.0]]).T, "count": torch.tensor(1)}
    assert plain_bytes(state) == bytes(4) + b"\x00\x00\x80\x3f" + b"\x01" + bytes(7)


def outcomes(*values):
    return [Outcome(f"c{at}", "ok", accuracy=value) for at, value in enumerate(values)]


def test_the_spread_is_mean_worst_tenth_and_lowest_of_those_that_told():
    assert spread(outcomes(0.5, 0.25, 0.75), "accuracy") == {"mean": 0.5, "worst_tenth": 0.25, "lowest": 0.25}
    many = outcomes(*[at / 32 for at in range(20)])
    assert spread(many, "accuracy")["worst_tenth"] == 1 / 64
    assert spread([*outcomes(0.5, None), Outcome("d", "timeout", accuracy=0.0)], "accuracy")["mean"] == 0.5
    assert spread(outcomes(None), "accuracy") is None and spread([], "accuracy") is None
