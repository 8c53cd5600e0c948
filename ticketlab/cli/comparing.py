"""What reports came to: the page that was written, or methods side by side as tables or JSON."""

from __future__ import annotations

from ticketlab.cli.render import new_table, note, result, show, with_interval
from ticketlab.comparison import Point, as_dict, verdicts
from ticketlab.method_names import said
from ticketlab.words import counted
from ticketlab.workflows.report import Compared, Reported


def reported(done: Reported, json: bool) -> None:
    """The page, where it is and how large."""
    if json:
        named = {name: getattr(done, name) for name in ("figures", "tables", "bytes")}
        result({"page": str(done.page), "runs": [str(path) for path in done.runs], **named})
        return
    note(f"of {', '.join(str(path) for path in done.runs)}")
    result(str(done.page))
    beside = f"{counted(done.figures, 'figure')} and {counted(done.tables, 'table')}, beside it as PNG, SVG and CSV"
    note(f"{done.bytes / 1e6:.1f} MB with {beside}; open it in a browser, or send it to someone")


def compared(done: Compared, json: bool) -> None:
    """Methods side by side: accuracies, costs, verdicts."""
    for text in done.notes:
        note(text)
    if json:
        result({"comparisons": [as_dict(one) for one in done.comparisons], "files": [str(path) for path in done.files]})
        return
    for one in done.comparisons:
        columns = ["method", *(f"{100 * density:.3g} %" for density in one.shared_densities())]
        table = new_table(f"{one.data}: test accuracy % ± 95 % t interval, by density", columns)
        for method in one.methods():
            found = [one.at(method, density) for density in one.shared_densities()]
            table.add_row(method, *(_accuracy_cell(point) for point in found))
        show(table)
        if common := said(one.common):
            note(f"unless a name says otherwise: {common}")
        if len(one.shared_densities()) < len(one.densities()):
            note("densities that fewer than half of the methods have are in the files alone")
        note(f"▲ ahead of, ▼ behind '{one.baseline}' by more than the interval of the paired difference; (n) seeds")
        costs = new_table(
            "all training, search included: 10⁹ operations executed / seconds / effective density %", columns
        )
        for method in one.methods():
            found = [one.at(method, density) for density in one.shared_densities()]
            costs.add_row(method, *(_cost_cell(point) for point in found))
        show(costs)
        for sentence in verdicts(one):
            result(sentence)
    note("files: " + ", ".join(str(path) for path in done.files))


def _accuracy_cell(point: Point | None) -> str:
    if point is None:
        return ""
    return f"{with_interval(point.test_accuracy, '.2f')} ({point.test_accuracy.n}){point.mark}"


def _cost_cell(point: Point | None) -> str:
    if point is None:
        return ""
    flops = "?" if point.flops is None else f"{point.flops / 1e9:,.{0 if point.flops >= 1e10 else 1}f}"
    effective = "?" if point.effective_density is None else f"{100 * point.effective_density:.3g}"
    return f"{flops} / {point.seconds:.1f} / {effective}"
