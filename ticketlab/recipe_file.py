"""A recipe's YAML text → a `Recipe`; every error at once, each with file, line and column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ticketlab.errors import RecipeError
from ticketlab.recipe import Recipe
from ticketlab.registry import did_you_mean

Key = tuple[str | int, ...]
Problem = tuple[Key, str]

MAX_KEYS = 10_000
"""Anchors can multiply a short text without bound; no recipe comes near this."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema: `1e-3` is a number, `on` is a string."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers.get("\0", [])


def _whole_number(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """YAML 1.2 reads `017` as 17 and octal only as `0o17`."""
    text = str(node.value)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe and where each of its keys stands, so that later checks can point at them too."""

    path: Path
    recipe: Recipe
    places: dict[Key, str]
    stand_in_for: str | None = None
    """What the recipe's data stand in for, where it is the recipe of a run that was made with a stand-in."""
    derived_from: str | None = None
    """The run that a question was asked of, where its answer needs a run by this recipe, too."""

    def with_recipe(self, recipe: Recipe) -> RecipeFile:
        """The same file and places with another recipe."""
        return replace(self, recipe=recipe)

    def error(self, problems: Iterable[Problem]) -> RecipeError:
        """One error that lists all problems with their places."""
        return RecipeError("\n".join(_located(problem, self.path, self.places) for problem in problems))


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read and check a recipe; raises RecipeError that lists all mistakes.

    Args:
        overrides: `a.b=c` each; checked exactly like the file.
    """
    places: dict[Key, str] = {}
    tree, problems = _parse(_text(path), path, places)
    return _resolved(path, tree, places, problems, overrides)


def read_variants(path: Path) -> dict[str, list[str]]:
    """The variants that a recipe names, with their overrides; what is wrong with them is told with the recipe."""
    tree, _ = _parse(_text(path), path, {})
    found = tree.get("variants")
    if not isinstance(found, dict) or not all(isinstance(own, list) for own in found.values()):
        return {}
    return {str(name): [str(text) for text in own] for name, own in found.items()}


def parse_recipe(path: Path, tree: dict[str, Any], overrides: Sequence[str], origin: str) -> RecipeFile:
    """A recipe that stands in no file; `path` says what it is called and where its own files are.

    Args:
        origin: What errors name instead of a place in a file.
    """
    return _resolved(path, tree, {(): origin}, [], overrides)


def override(file: RecipeFile, overrides: Sequence[str]) -> RecipeFile:
    """The same recipe with some fields changed, checked like any."""
    tree = file.recipe.model_dump(mode="json", exclude_defaults=True)
    found = _resolved(file.path, tree, dict(file.places), [], overrides)
    stand_in_for = file.stand_in_for if found.recipe.data.name == file.recipe.data.name else None
    return replace(file, recipe=found.recipe, places=found.places, stand_in_for=stand_in_for)


def _resolved(
    path: Path, tree: dict[str, Any], places: dict[Key, str], problems: list[Problem], overrides: Sequence[str]
) -> RecipeFile:
    chosen, wrong = _of_variant(tree, overrides)
    problems += wrong + _override(tree, [*chosen, *overrides], places)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(dict(detail)) for detail in error.errors(include_url=False)]
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(_located(p, path, places) for p in problems)))
    return RecipeFile(path, recipe, places)


def _of_variant(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Overrides of the variant that is asked for, which then is the whole recipe; what is set anyway is left out."""
    asked = [value for field, _, value in (text.partition("=") for text in overrides) if field == "variant"]
    name, variants = asked[-1] if asked else tree.get("variant"), tree.get("variants")
    if name is None or not isinstance(variants, dict) or not variants:
        return [], []
    if name not in variants:
        return [], [(("variant",), f"there is no variant '{name}'{did_you_mean(str(name), map(str, variants))}")]
    own = tree.pop("variants")[name]
    return unless_set([str(text) for text in own] if isinstance(own, list) else [], overrides), []


def unless_set(own: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """A variant's overrides but for those of fields that others set."""
    fields = {text.partition("=")[0] for text in overrides}
    return [text for text in own if text.partition("=")[0] not in fields]


def parse_value(text: str) -> Any:
    """What a text stands for in a recipe's YAML; raises yaml.YAMLError where it is none."""
    return yaml.load(text, _Loader)


def recipe_yaml(recipe: Recipe, in_short: bool = False) -> str:
    """A recipe with every field, or with those alone that are not at their defaults; read back it is equal."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_defaults=in_short), sort_keys=False, allow_unicode=True
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = [path.parent, Path("recipes")] if path.parent == Path() else [path.parent]
        known = sorted(str(found) for folder in near for found in folder.glob("*.yaml"))
        hint = did_you_mean(str(path), known) if known else ""
        if (named := Path("recipes", f"{path.stem}.yaml")).is_file():
            hint = f"; did you mean '{named}'?"
        raise RecipeError(f"{path}: no such recipe{hint}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file (a recipe is YAML in UTF-8)") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(text: str, path: Path, places: dict[Key, str]) -> tuple[dict[str, Any], list[Problem]]:
    """The mapping in a YAML text; fills `places`; returns duplicate keys as problems."""
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{path}: is empty; a recipe needs at least model, data and train")
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}:1:1: a recipe is a mapping of keys to values, not a list or a scalar")
        _walk(node, (), str(path), places, problems)
        return loader.construct_document(node), problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: not valid YAML for a recipe: nested without end") from error
    except (yaml.YAMLError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"{path}: not valid YAML: {first}") from error


def _walk(node: yaml.Node, key: Key, name: str, places: dict[Key, str], problems: list[Problem]) -> None:
    if len(places) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys")
    places.setdefault(key, f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*key, index), name, places, problems)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name_node, value in node.value:
            word, line = str(name_node.value), name_node.start_mark.line + 1
            inner = (*key, word)
            if word in seen:
                # the place of the second occurrence, which `places` would not keep
                twice = (*key, f"{word}\0{line}")
                places[twice] = f"{name}:{line}:{name_node.start_mark.column + 1}"
                problems.append((twice, f"duplicate key; first at line {seen[word]}"))
            else:
                seen[word] = line
                places[inner] = f"{name}:{line}:{name_node.start_mark.column + 1}"
            _walk(value, inner, name, places, problems)


def _override(tree: dict[str, Any], overrides: Sequence[str], places: dict[Key, str]) -> list[Problem]:
    """Write each `a.b=c` into the tree; returns those that have no such form."""
    problems: list[Problem] = []
    for text in overrides:
        dotted, equals, value = text.partition("=")
        key: Key = tuple(dotted.split("."))
        for inner in [place for place in places if place[: len(key)] == key]:
            del places[inner]  # what stood there in the file no longer counts
        places[key] = f"--set {text}"
        if not equals or not all(key):
            problems.append((key, "write it as --set section.key=value"))
            continue
        branch: Any = tree
        for part in key[:-1]:
            branch = branch.setdefault(part, {}) if isinstance(branch, dict) else None
        if not isinstance(branch, dict):
            problems.append((key, "there is no such section to set a key in"))
            continue
        try:
            branch[key[-1]] = parse_value(value)
        except yaml.YAMLError:
            problems.append((key, f"'{value}' is not a YAML value"))
    return problems


def _explain(detail: dict[str, Any]) -> Problem:
    """pydantic's error in our words."""
    key: Key = tuple(part for part in detail["loc"] if part != "[key]")
    kind, message, value = detail["type"], str(detail["msg"]), detail.get("input")
    if kind == "extra_forbidden":
        return key, "unknown key" + did_you_mean(str(key[-1]), _known_keys(key[:-1]))
    if kind == "literal_error":
        choices = re.findall(r"'([^']+)'", detail["ctx"]["expected"])
        return key, f"{value!r} is not one of {', '.join(choices)}{_near(str(value), choices)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return key, f"this is a section: write keys and values under it (got {value!r})"
    plain = {
        "missing": "required key is missing",
        "too_short": "give at least one",
        "tuple_type": f"write a list, such as [{value}]",
        **dict.fromkeys(
            (
                "sgd_only",
                "nesterov",
                "grid",
                "one_place",
                "claim_pair",
                "claim_bound",
                "claim_order",
                "claim_share",
                "sparsify",
            ),
            message,
        ),
    }
    if kind in plain:
        return key, plain[kind]
    return key, f"{message.removeprefix('Value error, ')} (got {value!r})"


def _near(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else ""


def _known_keys(section: Key) -> list[str]:
    """Names of the fields of a section of the recipe."""
    model: type[BaseModel] = Recipe
    for part in section:
        if isinstance(part, int):
            continue  # an item of a list has the fields of all
        annotation = model.model_fields[str(part)].annotation
        kinds = [annotation, *get_args(annotation)]
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return list(model.model_fields)


def _located(problem: Problem, path: Path, places: dict[Key, str]) -> str:
    """`file:line:column: key: message`; a missing key stands where its section does, or what --set said of it."""
    key, message = problem
    inside = [at for place, at in places.items() if key not in places and key and place[: len(key)] == key]
    at = inside[0] if inside else next(places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in places)
    dotted = ".".join(str(part).partition("\0")[0] for part in key)
    return f"{at}: {dotted}: {message}" if dotted else f"{at}: {message}"
