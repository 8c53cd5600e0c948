import dataclasses

import pytest

from ticketlab.errors import RunError
from ticketlab.runs.find import find_run, list_runs, remove_run
from ticketlab.runs.manifest import check_same
from ticketlab.runs.store import Level, RunStore


def level(**changes):
    values = {field.name: 0 for field in dataclasses.fields(Level)}
    return Level(**{**values, "replicate": 1, "layers": {}, "curve": ({"step": 1.0},), **changes})


@pytest.fixture
def runs(tmp_path):
    for name in ("lenet-aaaaaa", "lenet-bbbbbb", "conv-cccccc"):
        RunStore(tmp_path / name).write_manifest({"state": "finished"})
    return tmp_path


def test_a_level_is_finished_when_its_record_is_there(tmp_path):
    store = RunStore(tmp_path)
    store.write_checkpoint(1, 0, {}, {"step": 5})
    assert not store.has_level(1, 0)
    store.write_level(level(level=0), {}, {})
    assert store.levels(1) == [level(level=0)]
    assert store.read_checkpoint(1, 0) is None
    store.write_level(level(level=2), {}, {})
    assert len(store.levels(1)) == 1  # level 1 is missing, so level 2 does not count


def test_a_damaged_record_is_found_before_anything_starts(tmp_path):
    store = RunStore(tmp_path)
    store.write_level(level(level=0), {}, {})
    store.write_checkpoint(1, 1, {}, {"step": 5})
    store.check()
    (store.level_dir(1, 1) / "checkpoint.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match="level_1/checkpoint"):
        store.check()
    (store.level_dir(1, 0) / "metrics.json").write_text('{"level": 0}')
    with pytest.raises(RunError, match="not the record of a level"):
        store.check()


def test_two_processes_cannot_hold_one_run(runs):
    store = RunStore(runs / "lenet-aaaaaa")
    with store.lock():
        assert store.is_held()
        with pytest.raises(RunError, match="another process"), store.lock():
            pass
        with pytest.raises(RunError, match="stop it first"):
            remove_run(store)
    assert not store.is_held()
    remove_run(store)
    assert not store.path.exists()


def test_a_run_that_never_started_leaves_nothing(tmp_path):
    store = RunStore(tmp_path / "new-run")
    with pytest.raises(ValueError), store.lock():
        raise ValueError
    assert not store.path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="name another folder with --runs"), RunStore(tmp_path / "runs/x").lock():
        pass


def test_runs_are_found_by_name_prefix_and_path(runs):
    assert find_run(runs, "conv").name == "conv-cccccc"
    assert find_run(runs, "lenet-aaaaaa").name == "lenet-aaaaaa"
    assert find_run(runs, str(runs / "lenet-bbbbbb")).name == "lenet-bbbbbb"
    with pytest.raises(RunError, match="fits several runs, name one:\nlenet-aaaaaa\nlenet-bbbbbb"):
        find_run(runs, "lenet")
    with pytest.raises(RunError, match="the name of a run is empty"):
        find_run(runs, "")
    with pytest.raises(RunError, match="did you mean 'conv-cccccc'"):
        find_run(runs, "konv-cccccc")


def test_a_recipes_name_means_its_run_though_others_begin_so(runs):
    RunStore(runs / "conv_paper-dddddd").write_manifest({"state": "finished"})
    assert find_run(runs, "conv").name == "conv-cccccc"
    with pytest.raises(RunError, match="fits several runs, name one:\nconv-cccccc\nconv_paper-dddddd"):
        find_run(runs, "con")


def test_runs_that_a_name_fits_are_told_apart_by_their_settings(runs):
    for name, rate, tail in (("lenet-aaaaaa", 0.1, "a: 1\nb: 1\nc: 1"), ("lenet-bbbbbb", 0.2, "a: 2\nb: 2\nc: 2")):
        (runs / name / "recipe.yaml").write_text(f"method: imp\ntrain: {{lr: {rate}}}\n{tail}\n")
    with pytest.raises(RunError) as raised:
        find_run(runs, "lenet")
    assert str(raised.value).splitlines()[1:] == [
        "lenet-aaaaaa: train.lr=0.1, a=1, b=1, and 1 more", "lenet-bbbbbb: train.lr=0.2, a=2, b=2, and 1 more",
    ]  # fmt: skip


def test_a_damaged_run_that_is_named_is_not_passed_over(runs):
    RunStore(runs / "conv_paper-dddddd").write_manifest({"state": "finished"})
    for content in ("", "{}"):
        (runs / "conv-cccccc" / "manifest.json").write_text(content)
        with pytest.raises(RunError, match=r"conv-cccccc/manifest\.json: damaged .*run the command that made it"):
            _ = find_run(runs, "conv", "prune").kind
        assert find_run(runs, None, "prune").name != "conv-cccccc"


def test_the_newest_run_is_taken_without_a_name(runs, tmp_path):
    (runs / "lenet-aaaaaa" / "manifest.json").touch()
    RunStore(runs / "lenet-aaaaaa").set_state("interrupted")
    assert find_run(runs, None).name == list_runs(runs)[-1].name == "lenet-aaaaaa"
    with pytest.raises(RunError, match="no runs in"):
        find_run(tmp_path / "nowhere", None)


def test_a_run_is_taken_up_only_where_it_would_go_on_the_same(tmp_path):
    before = {"device": "cpu", "threads": 1, "versions": {"torch": "2.9", "numpy": "2.0"}}
    assert check_same({}, {"device": "cuda"}, tmp_path) == []
    assert check_same(before, dict(before), tmp_path) == []
    with pytest.raises(RunError, match=r"another device \(cpu, now cuda\); .*number of threads \(1, now 2\)"):
        check_same(before, {"device": "cuda", "threads": 2}, tmp_path)
    (warning,) = check_same(before, {**before, "versions": {"torch": "2.15", "numpy": "2.0"}}, tmp_path)
    assert "torch 2.9 → 2.15" in warning
