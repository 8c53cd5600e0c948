"""Every error that a user can cause, in one tree, each with the exit status it leads to; how a stop is asked for."""

from __future__ import annotations

from collections.abc import Callable

Stop = Callable[[], bool]
"""Asked from time to time: once it is true, what is running saves what it has and ends."""


class TicketlabError(Exception):
    """The user's input is wrong; nothing was started."""

    exit_code = 2


class RecipeError(TicketlabError):
    """A recipe, or a `--set`, says something that cannot be run."""


class PluginError(TicketlabError):
    """A user's own file (plugin or model) cannot be loaded or used."""


class DataError(TicketlabError):
    """A data set is missing, damaged or cannot be fetched."""


class MissingData(DataError):
    """A data set is not on this machine and cannot be downloaded."""


class PruningError(TicketlabError):
    """A mask with the asked number of weights cannot be made."""


class FusionError(TicketlabError):
    """A network cannot be fused as asked."""


class FormatError(TicketlabError):
    """A network cannot be written in a format, or the file of one cannot be read."""


class UnknownMask(FormatError):
    """A message leaves out a mask that its receiver does not have; it has to be sent with the mask."""


class RunError(TicketlabError):
    """A run directory cannot be used as it is."""


class MissingRun(RecipeError):
    """A recipe names a run that has not been made yet."""


class FailedRun(TicketlabError):
    """A run started and could not go on: the machine, or training itself."""

    exit_code = 1


class GateFailed(TicketlabError):
    """A result was made, and does not keep what was promised of it."""

    exit_code = 3


class Interrupted(TicketlabError):
    """The user stopped the run; its state is saved."""

    exit_code = 130
