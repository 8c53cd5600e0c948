"""What a federation is refused, what it is told, and what makes it another run."""

import json

import pytest

from ticketlab.errors import TicketlabError
from ticketlab.recipe import FederateSection, PrivacySection
from ticketlab.workflows.federation.request import Asked, request_hash


def asked(*clients, **section):
    patience = {"min_clients": section.pop("min_clients")} if "min_clients" in section else {}
    return Asked(clients or ("pi1", "pi2"), FederateSection(**section), **patience)


PRIVACY = PrivacySection()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Asked(()), "--clients: name each client once"),
        (asked("pi1", "pi1"), r"name each client once, with commas between \(got pi1,pi1\)"),
        (asked(""), "'' is no name"),
        (asked("../x"), r"'../x' is no name of a client; use letters, digits, - and _"),
        (asked("café"), "'café' is no name of a client"),
        (asked("-pi1"), "'-pi1' is no name of a client"),
        (asked("a", "b", rule="personal", holdout=0.0), "federate.holdout: rule personal decides by examples"),
        (
            asked("a", "b", precision="float16", privacy={"kind": "central_client"}),
            "float16 moves updates after clients have clipped them",
        ),
        (asked('a"b'), "is no name"),
        (asked("pi1", min_clients=2), "--min-clients 2: there are 1 clients in a round"),
        (asked("a", "b", "c", min_clients=3, clients_per_round=2), "there are 2 clients in a round"),
        (asked(clients_per_round=3), "federate.clients_per_round: there are 2 clients, not 3"),
        (asked(partition="idd"), "unknown partition 'idd'; did you mean 'iid'"),
        (asked(partition="dirichlet", partition_options={"beta": 1.0}), r"federate\.partition_options\.beta"),
        (asked(rule="fixd"), "unknown rule 'fixd'; did you mean 'fixed'"),
        (asked(rule="personal", options={"rat": 0.1}), r"federate\.options\.rat"),
        (asked(options={"density": 0.1}), r"federate\.options\.density"),
        (
            asked(rule="personal", privacy=PRIVACY),
            "federate.privacy: needs one mask for all clients; rule personal has",
        ),
        (asked(rule="feddst", aggregate="median"), "federate.aggregate: needs one mask for all"),
        (asked(rule="submodels", server_lr=0.5), "federate.server_lr: needs one mask for all"),
        (asked(rule="prunefl", server_momentum=0.5), "federate.server_momentum: needs one mask for all"),
        (asked(rule="early_bird", privacy=PRIVACY), "federate.privacy: is for rule fixed; early_bird looks at each"),
        (asked(rule="sign_flip", privacy=PRIVACY), "federate.privacy: is for rule fixed; sign_flip looks at each"),
    ],
)
def test_what_cannot_be_run_is_told_first(given, message):
    with pytest.raises(TicketlabError, match=message):
        given.check()


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(TicketlabError) as told:
        asked("pi1", "pi1", "x y", clients_per_round=9, options={"a": 1}).check()
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == [
        "--clients", "--clients", "federate.clients_per_round", "federate.options.a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        asked(),
        asked("a-b", "A_1", min_clients=2),
        asked(privacy=PRIVACY),
        asked(rule="early_bird", server_momentum=0.9),
        asked(rule="sign_flip", aggregate="median"),
        asked(rule="submodels", options={"weak": "pi1"}),
        asked(partition="dirichlet", partition_options={"alpha": 0.1}),
    ],
)
def test_what_can_be_run_is_not_refused(given):
    given.check()


@pytest.mark.parametrize(
    ("rule", "start", "weights"),
    [
        ("fixed", None, "trained"), ("early_bird", None, "rewound"), ("personal", None, "rewound"),
        ("feddst", None, "trained"), ("prunefl", None, "trained"), ("submodels", None, "trained"),
        ("fixed", "reinit", "reinit"), ("personal", "trained", "trained"),
    ],
)  # fmt: skip
def test_rules_that_begin_dense_begin_with_rewound_weights_unless_told(rule, start, weights):
    assert asked(rule=rule, start=start).start == weights


def request(clients=("pi1", "pi2"), **more):
    section = more.pop("section", {})
    return {
        "settings": FederateSection(**section).model_dump(mode="json"), "work": "train", "start": "trained",
        "clients": list(clients), "simulated": False, "min_clients": 1, "round_timeout": 600.0, "join_timeout": 120.0,
        "runs": "/runs", "source": "tiny-abcdef", "digest": None, "level": 2, "replicate": 1, "data": None, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"section": {"rounds": 50}}, {"round_timeout": 5.0}, {"join_timeout": 5.0}, {"min_clients": 2},
        {"runs": "/elsewhere"}, {"data": "/data"}, {"simulated": True}, {"section": {"lr": 0.1}},
    ],
    ids=str,
)  # fmt: skip
def test_rounds_patience_folders_and_defaults_make_no_other_run(change):
    assert request_hash(request(**change)) == request_hash(request())


CHANGES = [
    {"clients": ("pi2", "pi1")}, {"clients": ("pi1",)}, {"start": "rewound"}, {"level": 1}, {"replicate": 2},
    {"source": "tiny-fedcba"}, {"digest": "00"}, {"work": "personal"},
    *({"section": section} for section in (
        {"lr": 0.2}, {"epochs": 2}, {"momentum": 0.5}, {"batch_size": 16}, {"rule": "feddst"}, {"options": {"a": 1}},
        {"partition": "shards"}, {"partition_options": {"alpha": 1.0}}, {"holdout": 0.2}, {"clients_per_round": 1},
        {"precision": "float16"}, {"precision": "float16", "error_feedback": True}, {"proximal": 0.1},
        {"aggregate": "median"}, {"server_lr": 0.5}, {"server_momentum": 0.5}, {"privacy": {"noise": 2.0}}, {"seed": 1},
    )),
]  # fmt: skip


def test_everything_else_makes_another_run():
    hashes = [request_hash(request(**change)) for change in [{}, *CHANGES]]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_never_changes_for_old_federations():
    """A new setting must leave these alone while it is at its default, or finished rounds are not found again."""
    assert request_hash(request()) == "68b4da"
    assert request_hash(json.loads(json.dumps(request(section={"lr": 0.2, "rule": "feddst"})))) == "ac7cf0"
