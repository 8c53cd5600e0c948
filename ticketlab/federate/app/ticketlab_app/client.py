"""The client's program, as it is installed on the device."""

from ticketlab.workflows.federation.client import app

__all__ = ["app"]
