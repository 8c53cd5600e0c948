"""Commands about recipes: what exists; one resolved, checked, or their schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import DataRoot, Json, Overrides, RecipePath, RunsRoot, places_of
from ticketlab.errors import TicketlabError

app = typer.Typer(help="What recipes exist; one resolved, checked, or their schema.", no_args_is_help=True)

RecipesRoot = Annotated[Path, typer.Option("--recipes", help="Folder with recipes.")]


@app.command()
def ls(recipes: RecipesRoot = Path("recipes"), json: Json = False) -> None:
    """List recipes with what each one shows."""
    with render.one_line_errors():
        _listed(sorted(recipes.glob("**/*.yaml")), recipes, json)


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, json: Json = False) -> None:
    """Print a recipe with every default written out."""
    with render.one_line_errors():
        from ticketlab.recipe_file import read_recipe, recipe_yaml

        resolved = read_recipe(recipe, overrides or ()).recipe
        render.result(resolved.model_dump(mode="json") if json else recipe_yaml(resolved).rstrip())


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    json: Json = False,
) -> None:
    """Check all that can be wrong before training; downloads nothing."""
    with render.one_line_errors():
        from ticketlab.recipe_file import read_recipe, read_variants
        from ticketlab.workflows.check import check_all
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.sweep_points import points_of

        with _problems_as_json(recipe, json):
            machine = Machine(runs, places_of(data, may_download=False))
            points = points_of(overrides or (), read_variants(recipe))
            told = [check_all(read_recipe(recipe, point.overrides), machine) for point in points]
            unchecked = list(dict.fromkeys(text for one in told for text in one))
        _checked(recipe, unchecked, json)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from ticketlab.recipe import Recipe

    render.result(Recipe.model_json_schema())


def _listed(paths: Sequence[Path], root: Path, json: bool) -> None:
    """Recipes and their first comment line."""
    found = [{"recipe": str(path), "what": _what(path)} for path in paths]
    if json:
        render.result({"recipes": found})
        return
    if not found:
        raise TicketlabError(f"no recipes in {root}; name a folder with --recipes")
    table = render.new_table("recipes", ["recipe", "what it shows"])
    for item in found:
        table.add_row(item["recipe"], item["what"])
    render.show(table)


def _what(path: Path) -> str:
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return first.removeprefix("# What:").strip() if first.startswith("# What:") else ""


@contextmanager
def _problems_as_json(recipe: Path, json: bool) -> Iterator[None]:
    """What is wrong with a recipe on stdout too, for programs; the error goes on its way."""
    try:
        yield
    except TicketlabError as error:
        if json:
            render.result({"recipe": str(recipe), "valid": False, "errors": str(error).splitlines()})
        raise


def _checked(recipe: Path, unchecked: Sequence[str], json: bool) -> None:
    """A recipe that passed."""
    if json:
        render.result({"recipe": str(recipe), "valid": True, "unchecked": "; ".join(unchecked) or None})
    else:
        render.result(f"{recipe}: valid" + (f" ({'; '.join(unchecked)})" if unchecked else ""))
