"""Everything that can be wrong with a recipe before training, its claims included."""

from __future__ import annotations

from ticketlab.data.files import Places
from ticketlab.errors import MissingData
from ticketlab.recipe_file import RecipeFile
from ticketlab.workflows.plan import check_recipe, load_data, make_plan
from ticketlab.workflows.verify import find_claims


def check_all(file: RecipeFile, places: Places) -> str | None:
    """Check a recipe as far as the data on this machine allows; returns why not further, else None."""
    check_recipe(file)
    try:
        plan = make_plan(*load_data(file, places))
    except MissingData as error:
        return str(error)
    if file.recipe.claims:
        find_claims(file, plan)
    return None
