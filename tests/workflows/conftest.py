"""A run of the tiny recipe, for what looks at runs."""

import pytest

from ticketlab.workflows.run import Machine, Started, prune_run


@pytest.fixture
def pruned(tiny, places, tmp_path):
    """Run the tiny recipe; returns its store and the machine."""

    def go(*overrides, folder="runs"):
        machine = Machine(tmp_path / folder, places, "cpu", workers=1)
        (store,) = [e.store for e in prune_run(tiny(*overrides), machine) if isinstance(e, Started)]
        return store, machine

    return go
