"""The client's program, as it is installed on the device."""

from ticketlab.workflows.federate_client import app

__all__ = ["app"]
