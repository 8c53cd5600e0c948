"""The coordinator's program, as it is installed there."""

from ticketlab.workflows.federation.server import app

__all__ = ["app"]
