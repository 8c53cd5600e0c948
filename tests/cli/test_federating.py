"""`ticketlab federate` as it is typed and shown, its rounds made up."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.cli.federating import _standing, _wire, bits_per_second
from ticketlab.errors import TicketlabError
from ticketlab.workflows.federation import ticket as federate_ticket
from ticketlab.workflows.progress import Notice


@pytest.mark.parametrize(
    ("text", "rate"),
    [("250kbit", 250_000), ("10mbit", 1e7), ("1gbit", 1e9), ("9600bit", 9600), (" 1.5Mbit ", 1_500_000)],
)
def test_rates_of_links(text, rate):
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["", "250", "0kbit", "0.0mbit", "-1kbit", "fast", "10mb", "1e3bit", "1 kbit/s", "nan"])
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(TicketlabError, match="say a rate such as 250kbit"):
        bits_per_second(text)


def client(name, state="ok"):
    return {
        "name": name, "state": state, "wire_up": None, "wire_down": None,
        "bytes_down": 1000, "bytes_up": 500, "seconds": 1.0, "memory_mib": 200.0,
        "examples": 50, "accuracy": 0.5, "accuracy_after": 0.75, "loss": 0.1,
    }  # fmt: skip


def one(number, clients, rule=None):
    return {
        "round": number, "test_accuracy": 0.9, "val_accuracy": 0.9, "density": 0.1, "seconds": 3.0, "rule": rule or {},
        "clients": clients,
    }  # fmt: skip


def record(clients, **more):
    return {
        "run": "runs/tiny-federated-abcdef", "source": "tiny-abcdef", "rule": "fixed", "density": 0.1,
        "start": {"weights": "trained", "density": 0.1, "test_accuracy": 0.8}, "rounds": [one(1, clients)],
        "dense_bytes": 10_000, "zipped_dense_bytes": 5_000, "ratio": {"up": 20.0, "down": 10.0},
        "ratio_zipped": {"up": 10.0, "down": 5.0}, "controls": [], **more, "ratio_wire": {"up": None, "down": None},
    }  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command, with events that are given instead of a federation."""
    seen = []

    def call(*arguments, whole=None):
        whole = whole or record([client("pi1"), client("pi2")])

        def events(wanted, machine, should_stop):
            seen.append(wanted)
            yield Notice("tiny: density 10.00 %")
            yield {"live": {"round": 1, "updated": "", "clients": whole["rounds"][0]["clients"]}}
            yield from whole["rounds"]
            yield whole

        monkeypatch.setattr(federate_ticket, "federate_run", events)
        ran = CliRunner().invoke(app, ["federate", *map(str, arguments), "--runs", str(tmp_path)])
        return ran, seen[-1] if seen else None

    return call


def test_json_is_one_object_on_stdout_and_nothing_else(run):
    ran, _ = run("--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == record([client("pi1"), client("pi2")])
    assert "round 1: test 90.00 %, density 10.00 %, 3.0 s (pi1 ok, pi2 ok)" in ran.stderr


def test_quiet_leaves_stderr_empty_but_for_the_run(run):
    ran, _ = run("--json", "-q")
    assert json.loads(ran.stdout) and "round 1" not in ran.stderr and "density" not in ran.stderr


def test_the_table_names_each_client_and_the_bytes_saved(run):
    ran, _ = run()
    assert ran.exit_code == 0, ran.output
    assert "pi1" in ran.output and "pi2" in ran.output
    assert "test accuracy 90.00 % (before any round 80.00 %)" in ran.stdout
    assert (
        "fewer bytes than dense float32: up 20.0 ×, down 10.0 ×; than the same with its zeros zipped: up 10.0"
        in ran.stdout
    )


def test_of_more_than_twelve_clients_most_are_counted(run):
    states = ["ok"] * 20 + ["timeout"] * 5
    clients = [client(f"c{at:02}", state) for at, state in enumerate(states)]
    ran, _ = run(whole=record(clients))
    assert ran.exit_code == 0, ran.output
    assert "c11" in ran.output and "c12" not in ran.output
    assert "round 1: test 90.00 %, density 10.00 %, 3.0 s (20 ok, 5 timeout)" in ran.stderr
    assert len(ran.stdout.splitlines()) < 60


def test_brackets_in_what_a_client_says_are_shown_as_they_are(run):
    failed = client("pi1", "KeyError: [bold]")
    ran, _ = run(whole=record([failed, client("pi2")]))
    assert "KeyError: [bold]" in ran.stdout
    live = Console(width=200)
    with live.capture() as shown:
        live.print(_standing({"round": 1, "clients": [failed]}))
        live.print(_standing({"round": 1, "clients": [failed] * 13}))
    assert shown.get().count("KeyError: [bold]") == 1 + 12 + 1 and "13 KeyError: [bold]" in shown.get()


def test_a_link_tells_how_long_the_bytes_take(run):
    ran, _ = run("--link", "8kbit", "--json")
    assert json.loads(ran.stdout)["link"] == {
        "bits_per_second": 8000.0,
        "seconds_per_round": {"this federation": 1.5, "dense float32": 20.0, "the same with its zeros zipped": 10.0},
    }


def test_a_link_of_a_federation_goes_by_clients_that_answered(run):
    ran, _ = run("--link", "8kbit", "--json", whole=record([client("a"), {**client("b", "timeout"), "bytes_down": 9}]))
    assert json.loads(ran.stdout)["link"]["seconds_per_round"]["this federation"] == 1.5


def test_what_is_typed_reaches_the_workflow(run):
    _, wanted = run(
        "tiny", "--clients", "a, b", "--rounds", 5, "--rule", "feddst", "--float16", "--partition", "shards",
        "--min-clients", 2, "--level", 1, "-s", "federate.lr=0.2",
    )  # fmt: skip
    assert (wanted.run, wanted.clients, wanted.level, wanted.min_clients) == ("tiny", ("a", "b"), 1, 2)
    assert wanted.settings == {"rounds": 5, "rule": "feddst", "partition": "shards", "precision": "float16"}
    assert wanted.overrides == ("federate.lr=0.2",)


@pytest.mark.parametrize(
    ("kind", "of", "clients", "warned"),
    [("central", "all rounds", 2, True), ("local", "each answer", 2, False), ("central", "all rounds", 6, False)],
)
def test_privacy_is_told_with_its_limits(run, kind, of, clients, warned):
    spent = {"kind": kind, "epsilon": 4.3772, "delta": 1e-5, "of": of}
    names = [client(f"c{at}") for at in range(clients)]
    ran, _ = run(whole=record(names, rounds=[one(1, names, {"privacy": spent})]))
    assert f"privacy ({kind}): ε = 4.38 at δ = 1e-05 for {of}" in ran.stdout
    assert ("do not rely on it" in ran.stdout) is warned


def test_controls_stand_beside_the_federation(run):
    controls = [
        {"control": "server data alone, dense", "test_accuracy": 0.5, "rounds": [], "ratio": None},
        {"control": "dense", "test_accuracy": 0.95, "rounds": [0.95], "ratio": {"up": 1.1, "down": 1.2}},
    ]
    ran, _ = run(whole=record([client("pi1")], controls=controls))
    assert "this federation" in ran.output and "server data alone, dense" in ran.output and "none sent" in ran.output


def test_a_run_that_is_not_there_is_a_users_mistake(tmp_path):
    ran = CliRunner().invoke(app, ["federate", "nosuch", "--runs", str(tmp_path)])
    assert ran.exit_code == 2
    assert ran.stdout == "" and ran.stderr.startswith("error: no run 'nosuch'")


def test_a_bad_link_is_told_before_anything_starts(run):
    ran, wanted = run("--link", "fast")
    assert ran.exit_code == 2 and "--link fast" in ran.stderr and wanted is None


def test_all_that_flower_sends_is_told_beside_the_bytes_of_the_messages():
    told = {**client("a"), "wire_up": 900, "wire_down": 1100}
    assert _wire([told, client("b")]) == {"with all that Flower sends": 2000.0}
    assert _wire([client("b")]) == {}
