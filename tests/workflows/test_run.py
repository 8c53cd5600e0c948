"""Whole runs: directories, processes, failures."""

import json
import time

import pytest
import torch
from support import equal, states, untimed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worker_bodies import count, die_always, die_once, fail_second, never_ends

from ticketlab.errors import FailedRun, Interrupted, RunError, TicketlabError
from ticketlab.recipe_file import read_recipe
from ticketlab.report import run_levels, run_report
from ticketlab.runs.store import Level
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine, Started, choose_device, prune_run
from ticketlab.workflows.workers import Died, run_processes


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu")


def finish(file, machine):
    """Run to the end; returns the store and all events."""
    events = list(prune_run(file, machine))
    return next(e.store for e in events if isinstance(e, Started)), events


def test_a_run_leaves_recipe_manifest_levels_and_events(tiny, machine):
    store, events = finish(tiny(), machine)
    assert store.path.parent == machine.runs and store.name.startswith("tiny-")
    manifest = store.read_manifest()
    assert manifest["state"] == "finished"
    assert manifest["hash"] == store.name.removeprefix("tiny-")
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (manifest["threads"], manifest["device"], manifest["seeds"]) == (1, "cpu", [0])
    assert len(manifest["data_checksum"]) == 64
    assert "steps: 30it" in (store.path / "recipe.yaml").read_text()
    names = {p.name for p in store.level_dir(1, 2).iterdir() if "tfevents" not in p.name}
    assert names == {"ticket.safetensors", "early_stop.safetensors", "final.safetensors", "metrics.json"}
    assert len(list(store.path.glob("events.out.tfevents.*"))) == 1
    assert len([e for e in events if isinstance(e, Level)]) == 3


def test_recipe_and_layout_are_in_tensorboard_while_the_run_goes_on(tiny, machine):
    events = prune_run(tiny(), machine)
    assert isinstance(next(events), Started)
    (folder,) = machine.runs.iterdir()
    found = EventAccumulator(str(folder)).Reload()
    assert found.Tags()["scalars"] == []
    assert {name for name in ("hparams", "custom_scalars", "text") if found.PluginTagToContent(name)} == {
        "hparams", "custom_scalars", "text",
    }  # fmt: skip
    events.close()


def test_replicates_in_processes_equal_those_in_this_one(tiny, machine, tmp_path):
    file = tiny("replicates=3")
    here, _ = finish(file, Machine(tmp_path / "here", machine.places, "cpu", workers=1))
    apart, _ = finish(file, Machine(tmp_path / "apart", machine.places, "cpu", workers=2))
    assert [untimed(level) for level in run_levels(here)] == [untimed(level) for level in run_levels(apart)]
    assert equal(states(here, 3), states(apart, 3))
    assert [level.seed for level in run_levels(apart)] == [0] * 3 + [1] * 3 + [2] * 3


def test_a_finished_run_is_read_and_an_extended_one_goes_on(tiny, machine):
    store, _ = finish(tiny(), machine)
    before = (store.level_dir(1, 2) / "metrics.json").stat().st_mtime_ns
    manifest = (store.path / "manifest.json").stat().st_mtime_ns
    finish(tiny(), machine)
    assert (store.path / "manifest.json").stat().st_mtime_ns == manifest
    extended, _ = finish(tiny("replicates=2", "pruning.levels=3"), machine)
    assert extended.path == store.path
    assert (store.level_dir(1, 2) / "metrics.json").stat().st_mtime_ns == before
    report = run_report(store, run_levels(store))
    assert [len(replicate["levels"]) for replicate in report["replicates"]] == [4, 4]
    assert [row["test_accuracy"]["n"] for row in report["summary"]] == [2] * 4
    json.dumps(report)


def test_a_run_of_another_recipe_device_or_thread_count_is_refused(tiny, machine, places):
    store, _ = finish(tiny(), machine)
    with pytest.raises(RunError, match="another number of threads"):
        finish(tiny(), Machine(machine.runs, places, "cpu", threads=2))
    store.write_manifest({**store.read_manifest(), "hash": "000000"})
    with pytest.raises(RunError, match="made by another recipe"):
        finish(tiny(), machine)
    assert store.read_manifest()["hash"] == "000000"


def test_a_stand_in_is_told_first_and_recorded(tiny, machine):
    store, events = finish(tiny("data={name: mnist, offline: digits}"), machine)
    assert isinstance(events[0], Notice) and "STAND-IN DATA: 'digits' instead of 'mnist'" in events[0].text
    manifest = store.read_manifest()
    assert (manifest["data"], manifest["stand_in_for"]) == ("digits", "mnist")


def test_asking_for_less_forgets_nothing_of_a_run(tiny, machine):
    store, _ = finish(tiny("replicates=2"), machine)
    finish(tiny("pruning.levels=0"), machine)
    kept = read_recipe(store.path / "recipe.yaml").recipe
    assert (kept.pruning.levels, kept.replicates) == (2, 2)


def test_a_lost_recipe_is_written_again_by_the_command_that_made_the_run(tiny, machine):
    store, _ = finish(tiny(), machine)
    path = store.path / "recipe.yaml"
    before = path.read_bytes()
    path.unlink()
    _, events = finish(tiny(), machine)
    assert path.read_bytes() == before and sum(isinstance(event, Level) for event in events) == 3


def test_a_damaged_checkpoint_stops_the_run_before_it_starts(tiny, machine):
    store, _ = finish(tiny(), machine)
    path = store.level_dir(1, 2) / "checkpoint.safetensors"
    (store.level_dir(1, 2) / "metrics.json").unlink()
    path.write_bytes(b"junk")
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: damaged"):
        finish(tiny(), machine)


def test_an_interrupted_run_says_so_in_its_manifest_and_resumes(tiny, machine):
    asked = iter([False] * 5 + [True] * 1000)
    with pytest.raises(Interrupted):
        list(prune_run(tiny(), machine, lambda: next(asked)))
    (folder,) = machine.runs.iterdir()
    assert json.loads((folder / "manifest.json").read_text())["state"] == "interrupted"
    store, _ = finish(tiny(), machine)
    assert store.read_manifest()["state"] == "finished"


def test_a_full_disk_is_one_line_with_a_way_out_and_the_run_resumes(tiny, machine, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "level_0/final.safetensors")

    monkeypatch.setattr("ticketlab.runs.store.RunStore.write_level", full)
    with pytest.raises(FailedRun, match="no space left on the disk; free some and run the same command"):
        finish(tiny(), machine)
    monkeypatch.undo()
    store, _ = finish(tiny(), machine)
    assert store.read_manifest()["state"] == "finished"


def test_an_unforeseen_error_leaves_its_traceback_in_the_log(tiny, machine, monkeypatch):
    monkeypatch.setattr("ticketlab.workflows.train_level._finish", lambda *_: 1 / 0)
    with pytest.raises(FailedRun, match=r"ZeroDivisionError: .*traceback in .*error\.log"):
        finish(tiny(), machine)
    (folder,) = machine.runs.iterdir()
    assert "ZeroDivisionError" in (folder / "error.log").read_text()
    assert json.loads((folder / "manifest.json").read_text())["state"] == "failed"


def test_devices_that_are_not_here_are_refused():
    assert str(choose_device("cpu")) == "cpu"
    with pytest.raises(TicketlabError, match="no such device here; there is: cpu"):
        choose_device("tpu")


# --- worker processes


def never():
    return False


def named(*jobs):
    return {job: f"replicate {job}" for job in jobs}


def test_everything_that_replicates_yield_arrives():
    assert sorted(run_processes(count, named(1, 2, 3), 2, never)) == [(r, n) for r in (1, 2, 3) for n in range(3)]


def test_an_error_in_one_replicate_is_raised_and_stops_the_others():
    with pytest.raises(FailedRun, match="replicate 2 cannot go on"):
        list(run_processes(fail_second, named(1, 2), 2, never))


def test_a_killed_process_is_reported_and_its_replicate_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("TICKETLAB_TEST_MARKER", str(tmp_path / "marker"))
    assert list(run_processes(die_once, named(1), 1, never)) == [Died("replicate 1", "was killed by signal 9"), "alive"]


def test_a_process_that_always_dies_fails_the_run():
    with pytest.raises(FailedRun, match="was killed by signal 9, 4 times; giving up"):
        list(run_processes(die_always, named(1), 1, never))


def test_a_stop_lets_processes_save_first():
    began = time.monotonic()
    with pytest.raises(Interrupted):
        list(run_processes(never_ends, named(1, 2), 2, lambda: time.monotonic() - began > 0.5))
