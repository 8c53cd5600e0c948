"""Jobs on Ray, on a real cluster of two nodes on this machine: what local processes give, whatever dies."""

import importlib.util
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import equal, states, untimed
from typer.testing import CliRunner
from worker_bodies import count, die_always, fail_second, never_ends

from ticketlab.cli.app import app
from ticketlab.errors import FailedRun, Interrupted, TicketlabError
from ticketlab.report import run_levels
from ticketlab.runs.store import Level
from ticketlab.workflows.controls import control_run
from ticketlab.workflows.progress import Notice, Progress
from ticketlab.workflows.ray_engine import QUIET, _work, run_on_ray
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.sweep import Begun, sweep_run
from ticketlab.workflows.sweep_points import points_of
from ticketlab.workflows.workers import Engine

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: python -m pip install -e '.[ray]'"
)
# Ray leaves sockets and processes to be closed when the interpreter ends
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


def never():
    return False


def named(*jobs):
    return {job: f"replicate {job}" for job in jobs}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each; yields the cluster and its address."""
    os.environ |= {
        **QUIET,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, num_gpus=0, object_store_memory=80_000_000)
    yield made
    made.shutdown()


@pytest.fixture
def machines(tmp_path, places, cluster):
    """The same folder layout twice: on Ray, and in this process."""
    on_ray = Machine(tmp_path / "ray", places, "cpu", engine=Engine("ray", cluster.address))
    return on_ray, Machine(tmp_path / "here", places, "cpu", workers=1)


def finish(file, machine):
    events = list(prune_run(file, machine))
    return next(e.store for e in events if isinstance(e, Started)), events


@needs_ray
@pytest.mark.slow
def test_runs_sweeps_and_controls_on_ray_are_those_of_this_process(tiny, write_recipe, machines):
    on_ray, here = machines
    one, _ = finish(tiny("replicates=2"), on_ray)
    other, _ = finish(tiny("replicates=2"), here)
    assert [untimed(level) for level in run_levels(one)] == [untimed(level) for level in run_levels(other)]
    assert equal(states(one, 3), states(other, 3))
    *_, first = control_run(one, [1], ["reinit"], on_ray)
    *_, second = control_run(other, [1], ["reinit"], here)
    assert first["controls"] == second["controls"]
    for swept in (sweep_run(write_recipe(), points_of(["seed=0,1"]), machine) for machine in machines):
        begun = next(event for event in swept if isinstance(event, Begun))
        assert len([event for event in swept if isinstance(getattr(event, "seen", None), Level)]) == 6
        assert [point.store.read_manifest()["state"] for point in begun.points] == ["finished"] * 2


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_is_told_of_and_its_replicate_resumes(tiny, machines):
    on_ray, here = machines
    machine = replace(on_ray, checkpoint_seconds=0.0)
    notices, levels, is_killed = [], {}, False
    for event in prune_run(tiny("train.steps=400it"), machine):
        if not is_killed and isinstance(event, Progress):
            is_killed = True
            os.kill(_trainer(), signal.SIGKILL)
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, Level):
            levels[event.level] = untimed(event)
    assert len(notices) == 1 and notices[0].startswith("the process of replicate 1 died (")
    _, events = finish(tiny("train.steps=400it"), here)
    assert list(levels.values()) == [untimed(event) for event in events if isinstance(event, Level)]


@needs_ray
@pytest.mark.slow
def test_a_replicate_whose_machine_died_goes_on_where_one_is_left(tiny, machines, cluster):
    on_ray, here = machines
    lost, notices, levels = None, [], {}
    for event in prune_run(tiny("train.steps=400it", "replicates=2"), replace(on_ray, checkpoint_seconds=0.0)):
        if lost is None and isinstance(event, Level):
            (lost,) = cluster.worker_nodes
            cluster.remove_node(lost, allow_graceful=False)
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, Level):
            levels[event.replicate, event.level] = untimed(event)
    cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80_000_000)
    assert notices and all(text.startswith("the process of replicate ") for text in notices)
    store, _ = finish(tiny("train.steps=400it", "replicates=2"), here)
    assert [levels[key] for key in sorted(levels)] == [untimed(level) for level in run_levels(store)]


def _trainer():
    """Pid of the Ray worker that runs a job."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.read_bytes().startswith(b"ray::_work"):
            return int(path.parent.name)
    raise AssertionError("no Ray worker is at work")


@needs_ray
@pytest.mark.slow
def test_errors_stops_and_deaths_are_those_of_local_processes(cluster):
    at = cluster.address
    assert sorted(run_on_ray(count, named(1, 2, 3), 2, never, at, None)) == [
        (r, n) for r in (1, 2, 3) for n in range(3)
    ]
    with pytest.raises(FailedRun, match="replicate 2 cannot go on"):
        list(run_on_ray(fail_second, named(1, 2), 2, never, at, None))
    with pytest.raises(FailedRun, match=r"the process of replicate 1 died \(.*4 times; giving up"):
        list(run_on_ray(die_always, named(1), 1, never, at, None))
    began = time.monotonic()
    with pytest.raises(Interrupted):
        list(run_on_ray(never_ends, named(1, 2), 2, lambda: time.monotonic() - began > 8, at, None))
    assert time.monotonic() - began < 30


def test_a_machine_that_does_not_see_the_run_is_named(tmp_path):
    witness = tmp_path / "manifest.json"
    message = r"a machine of the Ray cluster, does not see .* as it is where the command runs; runs, recipe and data"
    told = next(_work(count, 1, None, str(tmp_path), (witness, b"one")))
    assert isinstance(told, FailedRun) and re.search(message, str(told))
    witness.write_text("another run of that name")
    assert isinstance(next(_work(count, 1, None, str(tmp_path), (witness, b"one"))), FailedRun)
    assert isinstance(next(_work(count, 1, None, str(tmp_path / "nowhere"), None)), FailedRun)


def test_what_ray_cannot_do_is_said_before_anything_starts(tiny, places, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran = CliRunner().invoke(app, ["prune", str(tiny().path), "--engine", "ray", "--runs", str(tmp_path / "runs")])
    assert ran.exit_code == 2 and "pip install 'ticketlab[ray]'" in " ".join(ran.output.split())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for engine, device, message in [
        (Engine("processes", "auto"), "cpu", "--address belongs to --engine ray"),
        (Engine("ray", "127.0.0.1:1"), "cpu", "no Ray cluster answers there"),
        (Engine("ray", "127.0.0.1"), "cpu", "name the cluster's head as HOST:6379, or auto"),
        (Engine("ray", "ray://head:10001"), "cpu", "name its head as HOST:6379"),
        (Engine("ray"), "cuda", "on Ray, training is on CPUs"),
    ]:
        with pytest.raises(TicketlabError, match=message):
            list(prune_run(tiny(), Machine(tmp_path / "runs", places, device, engine=engine)))
    assert not (tmp_path / "runs").exists()
