"""Names in recipes and what they stand for; options bound to a signature; a user's own Python files."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from ticketlab.errors import PluginError, TicketlabError

T = TypeVar("T", bound=Callable[..., Any])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


class Registry(Generic[T]):
    """Functions by name; `kind` is the word that error messages use for one of them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, T] = {}
        self._needs: dict[str, frozenset[str]] = {}

    def register(self, name: str, *, needs: Iterable[str] = ()) -> Callable[[T], T]:
        """Decorator that adds a function; `needs` names what it wants recorded for it.

        Raises PluginError when the name is taken by another function.
        """

        def add(function: T) -> T:
            if name in self._functions:
                raise PluginError(f"{self.kind} '{name}' is already registered; choose another name")
            self._functions[name] = function
            self._needs[name] = frozenset(needs)
            return function

        return add

    def find(self, name: str) -> T:
        """The function of that name; raises TicketlabError that suggests the nearest one."""
        if name not in self._functions:
            raise TicketlabError(f"unknown {self.kind} '{name}'{did_you_mean(name, self._functions)}")
        return self._functions[name]

    def needs(self, name: str) -> frozenset[str]:
        """What the function of that name wants recorded."""
        self.find(name)
        return self._needs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)


def keyword_options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters and those with a default: what a recipe's `options` may set."""
    return {name: p for name, p in inspect.signature(function).parameters.items() if _is_option(p)}


def _is_option(parameter: inspect.Parameter) -> bool:
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return True
    by_name = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    return by_name and parameter.default is not inspect.Parameter.empty


def check_options(function: Callable[..., Any], options: Mapping[str, object]) -> list[tuple[str, str]]:
    """What is wrong with the options, as (option, message); empty when they fit the signature."""
    known = keyword_options(function)
    problems = [
        (name, f"unknown option '{name}'" + (did_you_mean(name, known) if known else "; it takes none"))
        for name in options
        if name not in known
    ]
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            problems.append((name, f"option '{name}' is required"))
    return problems


def file_digest(path: Path) -> str:
    """SHA-256 of a user's file: part of a run's identity, so that an edited file is another run."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read ({error.strerror})") from error


def load_file(path: Path) -> ModuleType:
    """Run a user's Python file once per process and return it as a module.

    Raises PluginError with the file and line where the user's code failed.
    """
    path = path.resolve()
    identity = hashlib.sha256(f"{path}/{file_digest(path)}".encode()).hexdigest()
    name = f"ticketlab_user_{identity[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{where_it_failed(error, path)}: {type(error).__name__}: {error}") from error
    return module


def where_it_failed(error: BaseException, path: Path) -> str:
    """`file:line` of the innermost frame of a user's file in an error's traceback."""
    path = path.resolve()
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"{path}:{lines[-1]}" if lines else str(path)
