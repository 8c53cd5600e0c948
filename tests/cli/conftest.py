"""The program as users call it, in a folder of the test's own."""

import pytest
from typer.testing import CliRunner

from ticketlab.cli.app import app


@pytest.fixture
def ticketlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
