"""Lottery tickets from a YAML recipe: find them, measure them, keep them.

From Python: `ticketlab.prune(recipe)` and `ticketlab.load_run(path)`, which give a `ticketlab.Run`;
every error that has a way out is a `ticketlab.TicketlabError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketlab.errors import TicketlabError
    from ticketlab.notebook import Run, load_run, prune

__version__ = "0.1.0"
__all__ = ["Run", "TicketlabError", "__version__", "load_run", "prune"]


def __dir__() -> list[str]:
    """What is exported, loaded or not."""
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """What is exported is loaded when it is first asked for: the command line must not wait for torch."""
    if name in __all__:
        home = "ticketlab.errors" if name == "TicketlabError" else "ticketlab.notebook"
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'ticketlab' has no attribute '{name}'")
