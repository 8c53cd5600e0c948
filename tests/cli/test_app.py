"""Commands as a user types them: results on stdout, the rest on stderr, exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TINY
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.cli.render import stop_request

RUN = {
    "run", "recipe", "hash", "method", "state", "device", "data", "stand_in_for", "seconds", "replicates", "summary"
}  # fmt: skip


@pytest.fixture
def ticketlab(tmp_path, monkeypatch):
    """Run a command in an empty folder, without data but what packages ship."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ticketlab.data.files.download", no_network)

    def invoke(*arguments, answer=None):
        return CliRunner().invoke(app, [str(a) for a in arguments], input=answer)

    return invoke


def no_network(files, cache):
    from ticketlab.errors import MissingData

    raise MissingData(f"{files.name} is not on this machine and cannot be downloaded (no network)")


def test_prune_prints_one_json_object_and_nothing_else_on_stdout(ticketlab, write_recipe):
    ran = ticketlab("prune", write_recipe(), "--json", "--set", "pruning.levels=1")
    assert ran.exit_code == 0
    found = json.loads(ran.stdout)
    assert set(found) == RUN
    (replicate,) = found["replicates"]
    assert [level["level"] for level in replicate["levels"]] == [0, 1]
    wanted = {
        "level", "density", "remaining", "total", "val_accuracy", "test_accuracy", "test_loss", "early_stop_step",
        "steps", "seconds",
    }  # fmt: skip
    assert wanted <= set(replicate["levels"][0])
    assert found["summary"][1]["test_accuracy"]["n"] == 1
    assert "replicate 1 level 1: density 80.20 %" in ran.stderr


def test_prune_prints_a_table_and_one_plain_line_per_level(ticketlab, write_recipe):
    ran = ticketlab("prune", write_recipe(), "--set", "pruning.levels=1", "-s", "replicates=2", "--workers", "1")
    assert ran.exit_code == 0
    rows = [line.split() for line in ran.stdout.splitlines() if line.strip()[:2] in ("0 ", "1 ")]
    assert [row[1] for row in rows] == ["100.00", "80.20"]
    assert len([line for line in ran.stderr.splitlines() if " level " in line]) == 4
    assert "\x1b" not in ran.stdout + ran.stderr
    quiet = ticketlab("prune", write_recipe(), "--set", "pruning.levels=1", "-s", "replicates=2", "--quiet")
    assert quiet.stdout == ran.stdout
    assert " level " not in quiet.stderr


EARLY = """
method: early_bird
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 40it, batch_size: 32, evaluate_every: 10it}
early_bird: {densities: [0.5, 0.2], every: 4it, window: 3, epsilon: 0.4, also_at: [40it]}
"""


def test_an_early_bird_run_tells_draws_and_costs(ticketlab, write_recipe):
    recipe = write_recipe(EARLY, "early.yaml")
    ran = ticketlab("prune", recipe)
    assert ran.exit_code == 0, ran.stderr
    assert "drew the ticket of density 0.5 at step" in ran.stderr
    assert "settled 1 of 1" in ran.stdout and "% of" in ran.stdout
    found = json.loads(ticketlab("prune", recipe, "--json").stdout)
    assert set(found) == {*RUN, "draws"}
    draws = found["draws"]
    assert [(draw["density"], draw["chosen"]) for draw in draws] == [
        (0.5, True), (0.2, True), (0.5, False), (0.2, False)
    ]  # fmt: skip
    assert all(draw["step"] <= draw["total_steps"] == 40 for draw in draws)
    assert draws[0]["distance"] < 0.4 and draws[0]["settled"]
    assert draws == json.loads(ticketlab("runs", "show", "--json").stdout)["draws"]


def test_a_dry_run_of_an_early_bird_search_shows_its_tickets(ticketlab, write_recipe):
    found = json.loads(ticketlab("prune", write_recipe(EARLY, "early.yaml"), "--dry-run", "--json").stdout)
    assert [level["remaining"] for level in found["levels"]] == [50_200, 25_100, 10_040, 25_100, 10_040]


def test_a_stand_in_is_in_the_notice_the_table_and_the_json(ticketlab, write_recipe):
    recipe = write_recipe()
    data = ["--set", "data={name: mnist, offline: digits}", "--set", "pruning.levels=1"]
    ran = ticketlab("prune", recipe, *data)
    assert ran.stderr.startswith("STAND-IN DATA: 'digits' instead of 'mnist'")
    assert "digits (STAND-IN for mnist)" in ran.stdout
    found = json.loads(ticketlab("prune", recipe, *data, "--json").stdout)
    assert (found["data"], found["stand_in_for"]) == ("digits", "mnist")
    assert "digits (stand-in)" in ticketlab("runs", "ls").stdout


def test_dry_run_shows_the_plan_and_trains_nothing(ticketlab, write_recipe, tmp_path):
    ran = ticketlab("prune", write_recipe(), "--dry-run")
    assert ran.exit_code == 0
    assert "steps: 30it" in ran.stdout and "40260" in ran.stdout
    assert not (tmp_path / "runs").exists()
    found = json.loads(ticketlab("prune", write_recipe(), "--dry-run", "--json").stdout)
    assert [level["remaining"] for level in found["levels"]] == [50200, 40260, 32298]
    assert [level["macs"] for level in found["levels"]] == [50200, 40260, 32298]


def test_a_dry_run_tells_of_a_stand_in_too(ticketlab, write_recipe):
    ran = ticketlab("prune", write_recipe(), "--set", "data={name: mnist, offline: digits}", "--dry-run")
    assert ran.exit_code == 0
    assert ran.stderr.startswith("STAND-IN DATA: 'digits' instead of 'mnist'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "pruning.rate=1.2"], "--set pruning.rate=1.2: pruning.rate: Input should be less than 1"),
        (["--set", "pruning.levels=-1"], "pruning.levels: Input should be greater than or equal to 0"),
        (["--set", "pruning.rewind=31it"], "step 31 is not before the end of training at step 30"),
        (["--set", "model.name=lenet_300_10"], "did you mean 'lenet_300_100'?"),
        (["--set", "data={name: digit}"], "--set data={name: digit}: data.name: unknown data set 'digit'"),
        (["--set", "data={name: mnist}"], "mnist is not on this machine and cannot be downloaded"),
        (["--device", "tpu"], "--device tpu: no such device here"),
        (["--data", "/nonexistent"], "name a readable folder with --data"),
        (["--runs", "/proc/nothing"], "name another folder with --runs"),
    ],
)
def test_bad_input_is_one_message_status_2_and_nothing_written(ticketlab, write_recipe, tmp_path, arguments, message):
    recipe = write_recipe()
    if "--data" in arguments:
        arguments = [*arguments, "--set", "data={name: mnist}"]
    ran = ticketlab("prune", recipe, *arguments)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert message in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_criterion_of_ones_own_works_in_worker_processes(tmp_path, write_recipe):
    (tmp_path / "grown.py").write_text(
        "from ticketlab.pruning.criteria import criteria\n"
        "@criteria.register('grown', needs={'initial'})\n"
        "def grown(weight, evidence, *, power=1.0):\n"
        "    return (weight - evidence.initial).abs() ** power\n"
    )
    own = ["--set", "plugins=[grown.py]", "--set", "pruning={criterion: grown, options: {power: 2.0}, levels: 1}"]
    process = start(write_recipe(), tmp_path / "runs", *own, "--set", "train.steps=20it", "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [row["test_accuracy"]["n"] for row in json.loads(output)["summary"]] == [2, 2]


SWEEP = ("--set", "seed=0,1", "--set", "pruning.rate=0.2,0.5", "--workers", "1")


def test_a_sweep_is_one_table_and_one_json_object(ticketlab, write_recipe, tmp_path):
    recipe = write_recipe()
    ran = ticketlab("prune", recipe, *SWEEP, "--quiet")
    assert ran.exit_code == 0, ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines() if "tiny-" in line]
    # dense and the sparsest of each point at least; by hand: 32298 and 4800 + 7500 + 810 of 50200
    assert [row[:4] for row in rows if row[2] == "0"] == [
        [seed, rate, "0", "100.00"] for seed in ("0", "1") for rate in ("0.2", "0.5")
    ]
    assert {(row[1], row[3]) for row in rows if row[2] == "2"} == {("0.2", "64.34"), ("0.5", "26.12")}
    found = json.loads(ticketlab("prune", recipe, *SWEEP, "--json").stdout)
    assert set(found) == {"sweep"}
    assert [point["set"] for point in found["sweep"]] == [
        {"seed": seed, "pruning.rate": rate} for seed in (0, 1) for rate in (0.2, 0.5)
    ]
    assert all(set(point) == {"set", *RUN} and point["state"] == "finished" for point in found["sweep"])
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_a_sweep_that_fails_in_a_point_tells_the_others_and_ends_with_1(ticketlab, write_recipe):
    ran = ticketlab(
        "prune", write_recipe(), "-s", "train.optimizer=sgd", "-s", "train.lr=1e30,0.01", "--json", "--workers", "1"
    )
    assert ran.exit_code == 1
    assert "error: train.lr=1e30: replicate 1: training diverged" in ran.stderr
    assert [point["state"] for point in json.loads(ran.stdout)["sweep"]] == ["failed", "finished"]


def test_a_dry_run_of_a_sweep_lists_its_points(ticketlab, write_recipe, tmp_path):
    ran = ticketlab("prune", write_recipe(), *SWEEP, "--dry-run")
    assert ran.exit_code == 0 and ran.stdout.count("tiny-") == 4 and "4 points into runs" in ran.stdout
    found = json.loads(ticketlab("prune", write_recipe(), *SWEEP, "--dry-run", "--json").stdout)
    assert [point["levels"][2]["remaining"] for point in found["sweep"]] == [32298, 13110] * 2
    assert found["seconds"] == pytest.approx(sum(point["seconds"] for point in found["sweep"]))
    assert not (tmp_path / "runs").exists()


def test_recipes_are_listed_shown_and_checked(ticketlab, write_recipe, tmp_path):
    (tmp_path / "recipes").mkdir()
    write_recipe("# What: a tiny one.\n" + write_recipe().read_text(), "recipes/small.yaml")
    assert "a tiny one." in ticketlab("recipes", "ls").stdout
    assert json.loads(ticketlab("recipes", "ls", "--json").stdout)["recipes"][0]["what"] == "a tiny one."
    shown = ticketlab("recipes", "show", "recipes/small.yaml", "--set", "seed=5")
    assert "seed: 5\n" in shown.stdout and "criterion: magnitude" in shown.stdout
    assert ticketlab("recipes", "check", "recipes/small.yaml").stdout.strip() == "recipes/small.yaml: valid"
    told = ticketlab("recipes", "check", "recipes/small.yaml", "--json", "--set", "train.lrr=1")
    assert told.exit_code == 2 and json.loads(told.stdout)["valid"] is False
    assert json.loads(told.stdout)["errors"] == [told.stderr.strip().removeprefix("error: ")]
    broken = ticketlab("recipes", "check", "recipes/small.yaml", "--set", "train.lrr=1")
    assert (broken.exit_code, broken.stdout) == (2, "")
    assert ticketlab("recipes", "ls", "--recipes", "nowhere").exit_code == 2


def test_the_schema_accepts_what_recipes_say(ticketlab):
    schema = json.loads(ticketlab("recipes", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "data", "train"}
    pruning = schema["$defs"]["PruningSection"]["properties"]
    assert "Fraction of the remaining weights" in pruning["rate"]["description"]
    assert schema["$defs"]["TrainSection"]["properties"]["steps"]["pattern"] == "^(0|[1-9][0-9]*)(ep|it)$"


def test_runs_are_listed_shown_and_deleted(ticketlab, write_recipe, tmp_path):
    ticketlab("prune", write_recipe(), "--set", "pruning.levels=1")
    listed = json.loads(ticketlab("runs", "ls", "--json").stdout)["runs"]
    assert [(run["state"], run["levels"], run["replicates"]) for run in listed] == [("finished", 2, 1)]
    name = Path(listed[0]["run"]).name
    assert set(json.loads(ticketlab("runs", "show", "--json").stdout)) == RUN
    assert "80.20" in ticketlab("runs", "show", name[:7]).stdout
    assert ticketlab("runs", "show", "nothing").exit_code == 2
    assert ticketlab("runs", "rm", name, answer="n\n").exit_code == 0
    assert (tmp_path / "runs" / name).exists()
    assert ticketlab("runs", "rm", name, "--yes").exit_code == 0
    assert not (tmp_path / "runs" / name).exists()
    assert ticketlab("runs", "show").exit_code == 2


def test_a_damaged_run_is_listed_beside_the_others_and_can_be_deleted(ticketlab, write_recipe, tmp_path):
    for seed in (0, 1):
        ticketlab("prune", write_recipe(), "--set", "pruning.levels=1", "--set", f"seed={seed}", "--quiet")
    broken = sorted((tmp_path / "runs").iterdir())[0]
    (broken / "manifest.json").write_text("junk")
    ran = ticketlab("runs", "ls", "--json")
    states = {Path(run["run"]).name: run["state"] for run in json.loads(ran.stdout)["runs"]}
    assert states.pop(broken.name) == "damaged" and list(states.values()) == ["finished"]
    assert f"{broken.name}/manifest.json: damaged" in ran.stderr
    assert ticketlab("runs", "rm", broken.name, "--yes").exit_code == 0
    assert not broken.exists()


def test_data_is_listed_and_fetched(ticketlab):
    found = {item["name"]: item["found"] for item in json.loads(ticketlab("data", "ls", "--json").stdout)["data"]}
    assert found["digits"] == "package scikit-learn" and found["mnist"] is None
    assert "1797 examples, verified" in ticketlab("data", "fetch", "digits").stderr
    assert ticketlab("data", "fetch", "mnist").exit_code == 2
    assert "did you mean 'digits'" in ticketlab("data", "fetch", "digit").stderr
    ran = ticketlab("data", "fetch", "hapt")
    assert ran.exit_code == 2 and "cannot be fetched; put uci_hapt/ with hapt_raw.npz" in ran.stderr


def test_doctor_tells_what_is_here_and_what_to_do(ticketlab):
    ran = ticketlab("doctor", "--json")
    found = {item["what"]: item for item in json.loads(ran.stdout)["findings"]}
    assert {"torch", "accelerator", "threads", "data: mnist", "folder: cache", "folder: runs"} <= set(found)
    assert "ticketlab data fetch mnist" in found["data: mnist"]["do"]
    assert found["data: heart"]["do"].startswith("put heart_disease/ with processed.cleveland.data")
    bad = ticketlab("doctor", "--runs", "/proc/nothing", "--data", "/nonexistent")
    assert bad.exit_code == 0 and bad.stdout.count("✗") == 2


def test_the_version_is_told(ticketlab):
    from ticketlab import __version__

    assert ticketlab("--version").stdout.strip() == __version__


# --- real processes and signals


LONG = ["--set", "train.steps=600it", "--set", "pruning.levels=2", "--set", "replicates=2"]


def start(recipe, folder, *arguments):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "ticketlab", "prune", str(recipe), "--runs", str(folder), *LONG, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(folder, pattern, seconds=60):
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.02)


def results(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(TINY)
    process = start(folder / "tiny.yaml", folder / "runs")
    assert process.communicate(timeout=120) and process.returncode == 0
    return results(folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["*/replicate_1/level_0/checkpoint*", "*/replicate_2/level_1/checkpoint*"])
def test_a_run_killed_with_sigkill_resumes_to_the_identical_result(tmp_path, write_recipe, whole, moment):
    runs = tmp_path / "runs"
    process = start(write_recipe(), runs, "--checkpoint-seconds", "0.1")
    wait_for(runs, moment)
    process.kill()
    process.communicate()
    again = start(write_recipe(), runs)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert results(runs) == whole


def test_the_first_ctrl_c_waits_only_where_there_is_state_to_save():
    with stop_request() as should_stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_saves_exits_130_and_the_same_command_resumes(tmp_path, write_recipe, whole, number, workers):
    runs = tmp_path / "runs"
    process = start(write_recipe(), runs, "--workers", workers, "--checkpoint-seconds", "0.1")
    wait_for(runs, "*/replicate_1/level_1/checkpoint*")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert output == "" and "saved" in errors and "Traceback" not in errors
    assert json.loads(next(runs.glob("*/manifest.json")).read_text())["state"] == "interrupted"
    again = start(write_recipe(), runs, "--workers", workers)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert results(runs) == whole


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_runs(tmp_path, write_recipe):
    runs = tmp_path / "runs"
    first = start(write_recipe(), runs)
    wait_for(runs, "*/manifest.json")
    second = start(write_recipe(), runs)
    _, errors = second.communicate(timeout=60)
    first.terminate()
    first.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is writing this run" in errors
