"""The coordinator's program, as it is installed there."""

from ticketlab.workflows.federate_server import app

__all__ = ["app"]
