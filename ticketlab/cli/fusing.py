"""What `ticketlab fuse` was told, as values; a fusion as it goes on, and what came of it as tables or JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from ticketlab.cli.render import new_table, note, result, show
from ticketlab.data.sources import datasets
from ticketlab.errors import FusionError, Stop
from ticketlab.fusion_findings import method_name
from ticketlab.registry import did_you_mean
from ticketlab.runs.find import find_run
from ticketlab.runs.store import Level
from ticketlab.workflows.fuse import Event, Fusion
from ticketlab.workflows.progress import Notice, Progress
from ticketlab.workflows.run import Machine
from ticketlab.workflows.source import Elsewhere, Source, from_run, from_weights
from ticketlab.workflows.study import Study, study_run

ROWS_PER_LINE = 25

FUSION_COLUMNS = (
    "", "parameters", "non-zero", "MACs", "bytes", "test\naccuracy %", "µs for\n1 image", "µs for\n64",
)  # fmt: skip


def data_and_name(given: Sequence[str]) -> tuple[Path | None, str | None]:
    """`--data` names a folder, a data set, or (given twice) both."""
    names = [text for text in given if text in set(datasets)]
    folders = [Path(text) for text in given if text not in set(datasets)]
    if len(names) > 1 or len(folders) > 1:
        raise FusionError(f"--data: one folder and one data set at most (got {', '.join(given)})")
    for folder in folders:
        if not folder.is_dir():
            raise FusionError(
                f"--data {folder}: no such folder and no such data set{did_you_mean(str(folder), datasets)}"
            )
    return next(iter(folders), None), next(iter(names), None)


def options(texts: Iterable[str]) -> dict[str, float]:
    """`threshold=0.45` as a mapping."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise FusionError(f"--option {text}: write it as name=number")
        found[name] = number
    return found


def widths(text: str | None) -> dict[str, int] | None:
    """`fc1=56,fc2=68` as a mapping; `56,68` under the numbers of the groups, to be named later."""
    if text is None:
        return None
    found: dict[str, int] = {}
    for index, part in enumerate(text.split(",")):
        name, equals, value = part.rpartition("=")
        if not value.strip().isdecimal() or (equals and not name):
            raise FusionError(f"--widths {text}: write it as 56,68 or fc1=56,fc2=68")
        found[name.strip() or f"#{index}"] = int(value)
    if len(found) < len(text.split(",")):
        raise FusionError(f"--widths {text}: a group is named twice")
    return found


def numbers(text: str | None, what: str) -> tuple[float, ...] | None:
    """`0.5,0.5` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise FusionError(f"{what} {text}: write numbers with commas between them, one per channel") from error


def groups(path: Path | None) -> list[dict[str, list[str]]] | None:
    """The groups in a YAML file: a list of mappings of roles to layers."""
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FusionError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).partition("\n")[0]
        raise FusionError(f"{path}: cannot be read as YAML ({first})") from error
    entries = content if isinstance(content, list) else []
    if not entries or not all(_is_group(entry) for entry in entries):
        raise FusionError(f"{path}: a list of groups, each as {{producers: [conv1], norms: [bn1], consumers: [conv2]}}")
    return entries


def _is_group(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) <= {"producers", "norms", "consumers"}
        and all(isinstance(v, list) and all(isinstance(name, str) for name in v) for v in entry.values())
    )


def elsewhere(
    weights: Path | None,
    model: str | None,
    data: str | None,
    mean: str | None,
    std: str | None,
    run: Sequence[str],
    level: int | None,
) -> Elsewhere | None:
    """What was said about weights trained elsewhere; None where a run is meant."""
    told = {"--model": model, "--mean": mean, "--std": std, "--data NAME": data}
    if weights is None:
        extra = [name for name, value in told.items() if value is not None]
        if extra:
            raise FusionError(f"{', '.join(extra)}: only with --weights FILE, which is missing")
        return None
    if run or level is not None:
        raise FusionError("--weights names a network of its own: leave RUN and --level out")
    missing = [name for name in ("--model", "--data NAME") if told[name] is None]
    if missing:
        raise FusionError(f"--weights needs {' and '.join(missing)} (known data sets: {', '.join(datasets)})")
    return Elsewhere(weights, str(model), str(data), numbers(mean, "--mean"), numbers(std, "--std"))


def source(
    given: Elsewhere | None,
    run: Sequence[str],
    level: int | None,
    replicate: int,
    machine: Machine,
    overrides: Sequence[str],
    quiet: bool,
) -> Source:
    """The network to fuse; says which where the user did not."""
    if given is not None:
        return from_weights(given, machine.places, overrides)
    if len(run) > 1:
        raise FusionError(f"one run at a time (got {', '.join(run)}); several belong to --study")
    store = find_run(machine.runs, run[0] if run else None, "prune")
    found = from_run(store, machine.places, level, replicate, overrides)
    if not quiet:
        note(f"source: {found.name}, replicate {replicate}")
    return found


def follow(events: Iterable[Event], quiet: bool) -> Fusion:
    """Show events as they come; returns the finished fusion."""
    done: Fusion | None = None
    for event in events:
        if isinstance(event, Fusion):
            done = event
        elif isinstance(event, Notice):
            if not quiet:
                note(event.text)
        elif isinstance(event, Level):
            if not quiet:
                note(f"trained {event.steps} steps in {event.seconds:.1f} s: test {100 * event.test_accuracy:.2f} %")
        elif isinstance(event, Progress) and not quiet:
            note(f"step {event.step} of {event.stop}: validation {100 * event.val_accuracy:.2f} %")
    assert done is not None
    return done


def only_study(told: Mapping[str, object]) -> None:
    """Raise FusionError for options that the study, whose grid is fixed, would not heed."""
    ignored = [name for name, value in told.items() if value]
    if ignored:
        raise FusionError(f"--study has a fixed grid; leave {', '.join(ignored)} out")


def study(names: Sequence[str], machine: Machine, should_stop: Stop, quiet: bool) -> Study:
    """Work through the study of these runs, the newest one if none is named."""
    stores = [find_run(machine.runs, name) for name in names] or [find_run(machine.runs, None, "prune")]
    count = 0
    for event in study_run(stores, machine, should_stop):
        if isinstance(event, Study):
            return event
        if isinstance(event, Notice):
            note(event.text)
            continue
        count += 1
        if not quiet and count % ROWS_PER_LINE == 0:
            accuracy = f"{100 * event['accuracy']:.2f} of {100 * event['source_accuracy']:.2f} %"
            cell = f"replicate {event['replicate']} level {event['level']}: {method_name(event)}"
            note(f"{count} networks; {cell}, {event['params']:,} parameters: {accuracy}")
    raise AssertionError("a study ends with its record")


def fused(done: Fusion, json: bool) -> None:
    """What a network was before and after fusing."""
    record = done.record
    if json:
        result(record)
        return
    data = f"{record['data']} (STAND-IN for {record['stand_in_for']})" if record["stand_in_for"] else record["data"]
    table = new_table(f"{done.store.name} on {data}: {record['method']}", FUSION_COLUMNS)
    latency, many = record["latency_us"], record["latency_us_64"]
    for name, timed in (("before", "dense"), ("sparse", "masked"), ("after", "fused")):
        row = record[name]
        if row is not None:
            counts = [f"{row[key]:,}" for key in ("params", "nonzeros", "macs", "bytes")]
            accuracy = f"{100 * row['test_accuracy']:.2f}"
            table.add_row(name, *counts, accuracy, f"{latency[timed]:.1f}", f"{many[timed]:.0f}")
    show(table)
    stages = new_table("stages", ["network", "test accuracy %", "validation %", "seconds"])
    for stage in record["stages"]:
        percents = [f"{100 * stage[key]:.2f}" for key in ("test_accuracy", "val_accuracy")]
        stages.add_row(stage["stage"], *percents, f"{stage['seconds']:.1f}")
    show(stages)
    changed = {name: width for name, width in record["groups"].items() if name in record["widths"]}
    result("widths: " + ", ".join(f"{name} {record['widths'][name]}" for name in changed))
    note(f"run: {done.store.path}   network: {done.store.path}/fused.safetensors")


def studied(done: Study, json: bool) -> None:
    """What a study found."""
    record = done.record
    if json:
        result(record)
        return
    for run, methods in record["smallest_within_one_point"].items():
        levels_of = list(next(iter(methods.values())))
        title = f"{run}: parameters of the smallest network within one point, by the source's level"
        table = new_table(title, ["method", *(f"level {level}" for level in levels_of)])
        for name, found in methods.items():
            table.add_row(name, *(f"{size:,}" if size else "–" for size in found.values()))
        show(table)
    verdicts = new_table("hypotheses, written down beforehand", ["", "hypothesis", "measured", "verdict"])
    for finding in record["findings"]:
        verdicts.add_row(*(finding[key] for key in ("hypothesis", "claim", "measured", "verdict")))
    show(verdicts)
    note(f"{record['cells']} networks: {done.store.path}/cells.csv, figures beside it")
