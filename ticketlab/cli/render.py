"""Results as tables or JSON on stdout; progress and errors on stderr; exit statuses. The only code that prints."""

from __future__ import annotations

import json as jsonlib
import math
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ticketlab.errors import TicketlabError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ticketlab.comparison import Point
    from ticketlab.data.sources import Located
    from ticketlab.draws import Cost
    from ticketlab.report import Estimate, Row
    from ticketlab.runs.store import Level, RunStore
    from ticketlab.workflows.doctor import Finding
    from ticketlab.workflows.fuse import Fusion
    from ticketlab.workflows.plan import Plan
    from ticketlab.workflows.report import Compared
    from ticketlab.workflows.study import Study

LEVEL_COLUMNS = (
    "level", "density\n%", "effective\n%", "sparsity\n%", "test\naccuracy %", "n", "minus\ndense %", "at\nend %",
    "early\nstop", "ms per\nstep",
)  # fmt: skip

DRAW_COLUMNS = (
    "level", "density\n%", "drawn at\nstep", "", "test\naccuracy %", "minus ticket\nof the end %", "steps\nin all",
    "operations dense + ticket", "% of\none-shot", "% of\niterative", "remaining weights\nonly, % of one-shot",
    "% of\niterative", "seconds", "% of\none-shot", "% of\niterative",
)  # fmt: skip

FUSION_COLUMNS = (
    "", "parameters", "non-zero", "MACs", "bytes", "test\naccuracy %", "µs for\n1 image", "µs for\n64",
)  # fmt: skip


def result(content: object) -> None:
    """Text as it is, anything else as one JSON object, on stdout."""
    print(content if isinstance(content, str) else jsonlib.dumps(content, indent=2, ensure_ascii=False))


def counted(number: int, word: str) -> str:
    """`1 replicate`, `2 replicates`."""
    return f"{number} {word}{'s' * (number != 1)}"


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Errors as text on stderr and an exit status, never a traceback unless asked for."""
    try:
        yield
    except TicketlabError as error:
        if verbose:
            traceback.print_exc()
        lines = str(error).splitlines()
        note("error: " + ("\n  ".join(["", *lines]).lstrip("\n ") if len(lines) > 1 else lines[0]))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        note("interrupted; what was finished is kept")
        raise typer.Exit(130) from error


@contextmanager
def stop_request(
    said: str = "stopping: saving the state first (again to stop at once)",
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks for a stop, so that the state can be saved first; a second Ctrl-C does not wait.

    Before anybody has asked whether to stop there is no state to save, and the first one does not wait either.
    """
    asked: list[int] = []
    heard: list[bool] = []

    def ask(number: int, _: object) -> None:
        if asked or not heard:
            raise KeyboardInterrupt
        asked.append(number)
        note(said)

    def should_stop() -> bool:
        heard[:] = [True]
        return bool(asked)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def levels(store: RunStore, found: Sequence[Level], json: bool) -> None:
    """The levels of a run."""
    if json:
        result(run_record(store, found))
    else:
        _level_table(store, found)
        _draw_table(store, found)
        note(f"run: {store.path}   look: tensorboard --logdir {store.path}")


def run_record(store: RunStore, found: Sequence[Level]) -> dict[str, object]:
    """A run as one JSON object, with its early-bird draws if there are any."""
    from ticketlab.draws import draws
    from ticketlab.report import run_report

    drawn = [asdict(draw) for draw in draws(store, found)]
    return run_report(store, found) | ({"draws": drawn} if drawn else {})


def _level_table(store: RunStore, levels: Sequence[Level]) -> None:
    from ticketlab.report import summarise

    manifest = store.read_manifest()
    stand_in = manifest.get("stand_in_for")
    data = f"{manifest['data']} (STAND-IN for {stand_in})" if stand_in else manifest["data"]
    table = new_table(
        f"{store.name} on {data}: test accuracy at the early-stop step ± 95 % t interval",
        LEVEL_COLUMNS,
    )
    rows = summarise(levels)
    for row in rows:
        # an early-bird search ends with its last draw
        searched = manifest["method"] == "early_bird" and len(rows) > 1 and rows[1].minus_dense is None
        ended_early = not row.level and searched
        table.add_row(*_cells(row, "0 (search)" if ended_early else str(row.level)))
    show(table)


def _cells(row: Row, level: str) -> list[str]:
    return [
        level,
        f"{100 * row.density:.2f}",
        "?" if row.effective_density is None else f"{100 * row.effective_density:.2f}",
        f"{100 * (1 - row.density):.2f}",
        with_interval(row.test_accuracy, ".2f"),
        str(row.test_accuracy.n),
        with_interval(row.minus_dense, "+.2f") if row.level and row.minus_dense else "",
        f"{100 * row.final_test_accuracy.mean:.2f}",
        f"{row.early_stop_step.mean:.0f}",
        f"{row.step_ms:.2f}",
    ]


def _draw_table(store: RunStore, levels: Sequence[Level]) -> None:
    """Early-bird tickets, and what each cost, search included, against other ways to a ticket of its density."""
    from ticketlab.draws import draw_rows, draws

    rows = draw_rows(draws(store, levels))
    if not rows:
        return
    title = "tickets, and their training from nothing against one-shot pruning (dense to the end, then the ticket)"
    exponent = 3 * int(math.log10(max(row.executed.total for row in rows)) // 3)
    columns = [column.replace("operations", f"operations\n× 10^{exponent}:") for column in DRAW_COLUMNS]
    table = new_table(f"{title} and iterative pruning", columns)
    for row in rows:
        drawn = f"{row.step:,.0f} ({100 * row.share:.0f} %)"
        how = f"settled {row.settled} of {row.test_accuracy.n}" if row.chosen else "fixed"
        table.add_row(
            str(row.level),
            f"{100 * row.density:g}",
            drawn,
            how,
            with_interval(row.test_accuracy, ".2f"),
            "" if row.minus_end is None else with_interval(row.minus_end, "+.2f"),
            f"{row.steps:,.0f}",
            f"{row.executed.dense / 10**exponent:.3g} + {row.executed.ticket / 10**exponent:.3g}",
            *_shares(row.executed),
            *_shares(row.remaining),
            f"{row.seconds.total:.1f}",
            *(share + ("" if row.is_measured else " *") for share in _shares(row.seconds)[:1]),
            _shares(row.seconds)[1] + " *",
        )
    show(table)
    note("* reckoned from seconds per step; also_at: the end of training measures one-shot pruning")


def _shares(cost: Cost) -> tuple[str, str]:
    """A cost as a percentage of one-shot and of iterative pruning's."""
    return f"{100 * cost.total / cost.one_shot:.0f}", f"{100 * cost.total / cost.imp:.0f}"


def with_interval(estimate: Estimate, form: str) -> str:
    """Mean ± half the interval, in per cent; the mean alone where there is no interval."""
    half = "" if estimate.high is None else f" ±{100 * (estimate.high - estimate.mean):.2f}"
    return f"{100 * estimate.mean:{form}}{half}"


def plan(plan: Plan, runs: Path, json: bool) -> None:
    """A recipe and what it would do."""
    from ticketlab.recipe_file import recipe_yaml
    from ticketlab.workflows.estimate import Forecast, forecast

    expected: Forecast = forecast(plan)
    if json:
        result(
            {
                "run": str(runs / plan.name),
                "recipe": plan.recipe.model_dump(mode="json"),
                **expected.as_dict(),
            }
        )
        return
    result(recipe_yaml(plan.recipe))
    table = new_table("plan", ["level", "density %", "weights", "steps", "mega-MACs per example"])
    for row in expected.levels:
        table.add_row(
            str(row.level),
            f"{100 * row.density:.2f}",
            str(row.remaining),
            str(row.steps),
            f"{row.macs / 1e6:.3f}",
        )
    show(table)
    result(
        f"{counted(plan.recipe.replicates, 'replicate')} into {runs / plan.name}, "
        f"about {expected.bytes / 1e6:.0f} MB of disk, roughly {long_time(expected.seconds)} of one core in all"
    )
    if plan.early_bird:
        search = plan.early_bird
        result(
            f"a mask every {search.every} steps, ε = {search.epsilon:.3g} ({search.measure}) in a window of "
            f"{search.window}; first draw at step {search.every * search.window} or later; the last one ends the search"
        )
        if search.groups:
            note(
                "counts of tickets are as if every layer kept the same share of its channels; scale decides in the run"
            )


def long_time(seconds: float) -> str:
    """A time in the unit that fits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def finished(store: RunStore, json: bool) -> None:
    """What a fusion or a study found, from its record."""
    from ticketlab.workflows.fuse import RESULT as FUSED
    from ticketlab.workflows.fuse import Fusion
    from ticketlab.workflows.ship import FEDERATED
    from ticketlab.workflows.study import RESULT as STUDIED
    from ticketlab.workflows.study import Study

    if store.has_result(FUSED):
        fusion(Fusion(store, store.read_result(FUSED)), json)
    elif store.has_result(FEDERATED):
        from ticketlab.cli.federating import federation

        federation(store.read_result(FEDERATED), json)
    elif store.has_result(STUDIED):
        study(Study(store, store.read_result(STUDIED)), json)
    else:
        raise TicketlabError(f"{store.path} is not finished; the same command goes on with it")


def fusion(done: Fusion, json: bool) -> None:
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


def study(done: Study, json: bool) -> None:
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


def compared(done: Compared, json: bool) -> None:
    """Methods side by side: accuracies, costs, verdicts."""
    from ticketlab.comparison import as_dict, said, verdicts

    if json:
        result({"comparisons": [as_dict(one) for one in done.comparisons], "files": [str(path) for path in done.files]})
        return
    for text in done.left_out:
        note(f"left out: {text}")
    for one in done.comparisons:
        columns = ["method", *(f"{100 * density:.3g} %" for density in one.densities())]
        table = new_table(f"{one.data}: test accuracy % ± 95 % t interval, by density", columns)
        for method in one.methods():
            found = [one.at(method, density) for density in one.densities()]
            table.add_row(method, *(_accuracy_cell(point) for point in found))
        show(table)
        if common := said(one.common):
            note(f"unless a name says otherwise: {common}")
        note(f"▲ ahead of, ▼ behind '{one.baseline}' by more than the interval of the paired difference; (n) seeds")
        costs = new_table(
            "all training, search included: 10⁹ operations executed / seconds / effective density %", columns
        )
        for method in one.methods():
            found = [one.at(method, density) for density in one.densities()]
            costs.add_row(method, *(_cost_cell(point) for point in found))
        show(costs)
        for sentence in verdicts(one):
            result(sentence)
    note("files: " + ", ".join(str(path) for path in done.files))


def _accuracy_cell(point: Point | None) -> str:
    if point is None:
        return ""
    mark = {"ahead": " ▲", "behind": " ▼"}.get(point.verdict, "")
    return f"{with_interval(point.test_accuracy, '.2f')} ({point.test_accuracy.n}){mark}"


def _cost_cell(point: Point | None) -> str:
    if point is None:
        return ""
    flops = "?" if point.flops is None else f"{point.flops / 1e9:,.0f}"
    effective = "?" if point.effective_density is None else f"{100 * point.effective_density:.3g}"
    return f"{flops} / {point.seconds:.1f} / {effective}"


def recipes(paths: Sequence[Path], root: Path, json: bool) -> None:
    """Recipes and their first comment line."""
    found = [{"recipe": str(path), "what": _what(path)} for path in paths]
    if json:
        result({"recipes": found})
        return
    if not found:
        raise TicketlabError(f"no recipes in {root}; name a folder with --recipes")
    table = new_table("recipes", ["recipe", "what it shows"])
    for item in found:
        table.add_row(item["recipe"], item["what"])
    show(table)


def _what(path: Path) -> str:
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return first.removeprefix("# What:").strip() if first.startswith("# What:") else ""


@contextmanager
def problems_as_json(recipe: Path, json: bool) -> Iterator[None]:
    """What is wrong with a recipe on stdout too, for programs; the error goes on its way."""
    try:
        yield
    except TicketlabError as error:
        if json:
            result({"recipe": str(recipe), "valid": False, "errors": str(error).splitlines()})
        raise


def checked(recipe: Path, unchecked: Sequence[str], json: bool) -> None:
    """A recipe that passed."""
    if json:
        result({"recipe": str(recipe), "valid": True, "unchecked": "; ".join(unchecked) or None})
    else:
        result(f"{recipe}: valid" + (f" ({'; '.join(unchecked)})" if unchecked else ""))


def runs(stores: Sequence[RunStore], json: bool) -> None:
    """Runs in one line each."""
    rows = [_run_row(store) for store in stores]
    if json:
        result({"runs": rows})
        return
    table = new_table("runs", ["run", "method", "state", "data", "n", "levels", "updated"])
    for row in rows:
        data = f"{row['data']} (stand-in)" if row["stand_in_for"] else str(row["data"])
        name = Path(str(row["run"])).name + (" *" if row["derived_from"] else "")
        updated = str(row["updated"] or "")[:16].replace("T", " ")
        counts = (str(row["replicates"]), str(row["levels"]))
        table.add_row(name, str(row["method"]), str(row["state"]), data, *counts, updated)
    show(table)
    if any(row["derived_from"] for row in rows):
        note("*: made to answer a question about another run; no prefix, and no missing name, means it")


def _run_row(store: RunStore) -> dict[str, object]:
    """A run's line; a damaged run is listed too, so that it does not hide the others."""
    from ticketlab.report import state

    try:
        manifest = store.read_manifest()
        done = [len(store.levels(replicate)) for replicate in store.replicates()]
        known = state(store, manifest)
    except TicketlabError as error:
        note(f"warning: {error}")
        manifest, done, known = {}, [], "damaged"
    return {
        "run": str(store.path),
        "method": manifest.get("method"),
        "state": known,
        "data": manifest.get("data"),
        "stand_in_for": manifest.get("stand_in_for"),
        "derived_from": manifest.get("derived_from"),
        "replicates": len(done),
        "levels": min(done, default=0),
        "updated": manifest.get("updated"),
    }


def data(located: Sequence[Located], json: bool) -> None:
    """Data sets and where they are."""
    if json:
        result({"data": [{"name": item.name, "found": item.found, "wanted": item.wanted} for item in located]})
        return
    table = new_table("data", ["name", "found in", "to have it"])
    for item in located:
        table.add_row(item.name, item.found or "–", "" if item.found else item.wanted)
    show(table)


def findings(found: Sequence[Finding], json: bool) -> None:
    """What the doctor saw."""
    if json:
        result({"findings": [{"what": f.what, "state": f.state, "detail": f.detail, "do": f.do} for f in found]})
        return
    table = new_table("doctor", ["", "what", "found", "what to do"])
    for finding in found:
        table.add_row({"ok": "✓", "note": "·", "problem": "✗"}[finding.state], finding.what, finding.detail, finding.do)
    show(table)


def new_table(title: str, columns: Sequence[str]) -> Table:
    """A plain table; columns of percentages stand to the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, pad_edge=False, collapse_padding=True
    )
    for index, column in enumerate(columns):
        # a name or a verdict that is cut says nothing
        is_whole = column in ("run", "verdict", "state", "updated")
        table.add_column(column, justify="right" if index and "%" in column else "left", no_wrap=is_whole)
    return table


def show(table: Table) -> None:
    """Print a table on stdout."""
    console(stderr=False).print(table, markup=False)


def console(stderr: bool) -> Console:
    """A console that obeys NO_COLOR; where the output is no terminal it is wide enough never to fold a row."""
    from rich.console import Console

    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=200, no_color=True)
