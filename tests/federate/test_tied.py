"""What Flower starts for us ends with it."""

import os
import signal
import subprocess
import sys

import pytest

APP = """
import os, signal, time
from ticketlab.federate.tied import tie_app
tie_app()
for asked in (signal.SIGINT, signal.SIGTERM):
    signal.signal(asked, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""
STARTER = """
import subprocess, sys
subprocess.run([sys.executable, sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere programs are not tied to the one that started them")
@pytest.mark.parametrize(
    ("name", "ends"), [("flwr-serverapp", True), ("flwr-clientapp", True), ("flower-simulation", False)]
)
def test_an_app_that_does_not_listen_ends_with_the_program_that_started_it(name, ends, tmp_path):
    """The app holds the starter's output open, so its end is told by the end of that."""
    (tmp_path / name).write_text(APP)
    command = [sys.executable, "-c", STARTER, str(tmp_path / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        app = int(starter.stdout.readline())
        starter.kill()
        try:
            starter.communicate(timeout=20 if ends else 2)
            has_ended = True
        except subprocess.TimeoutExpired:
            has_ended = False
            os.kill(app, signal.SIGKILL)
    assert has_ended == ends
