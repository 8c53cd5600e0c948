"""Several runs on one page: methods side by side, what differs between their recipes, and each run in short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ticketlab.comparison import Comparison, compare, table_rows, verdicts
from ticketlab.errors import RunError
from ticketlab.figures import methods_side_by_side
from ticketlab.method_names import said
from ticketlab.page.blocks import Page, Picture, Section, Table, Text
from ticketlab.page.pruning import pruning_page
from ticketlab.page.words import interval, plain, points
from ticketlab.recipe import dotted, not_common
from ticketlab.recipe_file import read_recipe
from ticketlab.runs.store import RunStore
from ticketlab.trained_networks import run_networks
from ticketlab.words import counted

KEPT = ("claims", "accuracy", "controls", "layers", "cost")
"""Sections of each run's own page that stand here, too."""


def side_by_side(stores: Sequence[RunStore], against: str | None = None) -> Page:
    """The page of several pruning runs.

    Args:
        against: Method or run that the others are compared with; magnitude if left out.
    """
    comparisons, problem = _compared(stores, against)
    own = [(store, pruning_page(store, KEPT)) for store in stores]
    sections = [
        *([Section("methods", "Methods", list(_methods(comparisons)))] if comparisons else []),
        *([Section("methods", "Methods", [Text(f"Not side by side: {problem}.")])] if problem else []),
        Section("recipes", "What differs between the recipes", [_differences(stores)]),
        *(
            Section(f"run-{number}", store.name, list(_in_short(number, page)))
            for number, (store, page) in enumerate(own, 1)
        ),
    ]
    warnings = [f"{store.name}: {page.warning}" for store, page in own if page.warning]
    lead = [sentence for comparison in comparisons for sentence in verdicts(comparison)]
    return Page(f"{counted(len(stores), 'run')} side by side", lead, sections, " ".join(warnings) or None)


def _compared(stores: Sequence[RunStore], against: str | None) -> tuple[list[Comparison], str | None]:
    """The methods side by side, or why they cannot be."""
    networks = [network for store in stores for network in run_networks(store)]
    try:
        return compare(networks, against), None
    except RunError as error:
        if against is not None:
            raise
        return [], str(error)


def _methods(comparisons: Sequence[Comparison]) -> Iterator[Picture | Table | Text]:
    yield Picture(
        "comparison",
        "Test accuracy against density, against operations and against seconds; all training is counted, the search "
        "for a ticket included; means with 95 % intervals",
        "; ".join(sentence for comparison in comparisons for sentence in verdicts(comparison))
        or "Accuracies and costs are in the table below.",
        methods_side_by_side(comparisons),
    )
    for number, one in enumerate(comparisons, 1):
        densities = one.shared_densities()
        name = "comparison" if number == 1 else f"comparison-{number}"  # one file of the numbers of both tables
        yield Table(
            name,
            f"{one.data}: test accuracy, % ± half of the 95 % interval (n), by density; ▲ ahead of, ▼ behind "
            f"'{one.baseline}' by more than the interval of the paired difference",
            ("method", *(f"{100 * density:.3g} %" for density in densities)),
            [(method, *(_cell(one, method, density) for density in densities)) for method in one.methods()],
            table_rows(one),
        )
        yield Table(
            name,
            f"{one.data}: points of test accuracy against '{one.baseline}', paired by seed (n), and all training, with "
            "the search: 10⁹ operations executed, seconds",
            ("method", *(f"{100 * density:.3g} %" for density in densities)),
            [(method, *(_against(one, method, density) for density in densities)) for method in one.methods()],
            table_rows(one),
        )
        if common := said(one.common):
            yield Text(f"Unless a name says otherwise: {common}.")


def _cell(comparison: Comparison, method: str, density: float) -> str:
    point = comparison.at(method, density)
    if point is None:
        return ""
    return f"{interval(point.test_accuracy)} ({point.test_accuracy.n}){point.mark}"


def _against(comparison: Comparison, method: str, density: float) -> str:
    """The difference from the baseline and what the network cost."""
    point = comparison.at(method, density)
    if point is None:
        return ""
    minus = point.minus_baseline
    difference = "" if minus is None or method == comparison.baseline else f"{points(minus)} ({minus.n}); "
    operations = "?" if point.flops is None else f"{point.flops / 1e9:,.4g}"
    return f"{difference}{operations}, {point.seconds:,.0f} s"


def _differences(stores: Sequence[RunStore]) -> Table | Text:
    """Fields of the recipes that are not the same in all."""
    recipes = [dotted(read_recipe(store.witness).recipe.model_dump(mode="json")) for store in stores]
    names = [name for name in not_common(recipes) if name != "claims"]
    rows = [(name, *(plain(recipe.get(name)) for recipe in recipes)) for name in names]
    if not rows:
        return Text("Nothing: the recipes are the same.")
    return Table("recipes", "Fields that are not the same in all recipes", ("field", *(s.name for s in stores)), rows)


def _in_short(number: int, page: Page) -> Iterator[Text | Table | Picture]:
    """A run's own page, shortened; names of files say which run they are of."""
    yield from (Text(sentence) for sentence in [page.warning, *page.lead] if sentence)
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                yield Picture(f"run-{number}-{block.name}", block.title, block.alt, block.figure, block.data)
            elif isinstance(block, Table):
                yield Table(f"run-{number}-{block.name}", block.title, block.columns, block.rows, block.data)
