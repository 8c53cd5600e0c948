"""Everything that can be wrong with a recipe before training, its ticket and its claims included."""

from __future__ import annotations

from functools import partial

from ticketlab.errors import MissingData, MissingRun
from ticketlab.recipe_file import RecipeFile
from ticketlab.workflows.inputs import check_recipe, load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.run import Machine, plan_on
from ticketlab.workflows.ticket_source import TicketSource, find_source
from ticketlab.workflows.transfer import transfer_plan
from ticketlab.workflows.verify import find_claims


def check_all(file: RecipeFile, machine: Machine) -> list[str]:
    """Check a recipe as far as this machine allows; returns what could not be checked, and why."""
    check_recipe(file)
    unchecked: list[str] = []
    source: TicketSource | None = None
    if file.recipe.method == "transfer":
        try:
            file, source = find_source(file, machine.runs)
        except MissingRun as error:
            unchecked.append(f"ticket not checked: {error}")
    try:
        plan = make_plan(*load_data(file, machine.places))
    except MissingData as error:
        return [*unchecked, f"shapes and times not checked: {error}"]
    if source is not None:
        transfer_plan(plan, source)
    if file.recipe.claims and not unchecked:
        find_claims(file, partial(plan_on, machine=machine))
    return unchecked
