"""A small script stands in for the SuperNode: it connects, is refused, crashes and hangs on when it is told to."""

import sys

import pytest

from ticketlab.federate import supervisor
from ticketlab.federate.processes import start
from ticketlab.federate.supervisor import Told, changes, new_lines, supervise
from ticketlab.federate.systemd import quoted, unit

SAYS = {
    "connects": "print('\\x1b[92mINFO\\x1b[0m: SuperNode ID: 7', flush=True); time.sleep(60)",
    "crashes": "print('SuperNode ID: 7', flush=True); time.sleep(.6); os.kill(os.getpid(), 9)",
    "is refused": "print('[code: 2004] Failed to activate SuperNode.', flush=True); sys.exit(1)",
    "breaks": "print('ImportError: no torch', flush=True); sys.exit(3)",
    "hangs": "print('SuperNode ID: 7\\nGiving up reconnection after 30 seconds', flush=True); time.sleep(60)",
    "loses": "print('SuperNode ID: 7\\nConnection attempt failed, retrying', flush=True); time.sleep(1.2); "
    "print('Connection successful after 1 seconds and 2 tries.', flush=True); time.sleep(60)",
}


class Lab:
    """Runs scripts one after the other and stops after so many events."""

    def __init__(self, folder, *scripts, problems=()):
        self.folder, self.scripts, self.problems = folder, list(scripts), list(problems)
        self.children = []
        self.is_over = False

    def launch(self):
        log = self.folder / f"{len(self.children)}.log"
        code = f"import os, sys, time; {SAYS[self.scripts.pop(0)]}"
        self.children.append(start("pi1", [sys.executable, "-c", code], self.folder, log))
        return self.children[-1]

    def look(self):
        return self.problems.pop(0) if self.problems else None

    def events(self, count):
        found = []
        for event in supervise("lab:1", self.launch, self.look, lambda: self.is_over):
            found.append(event)
            self.is_over = len(found) >= count
        assert all(child.process.poll() is not None for child in self.children)
        return found


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(supervisor, "SHORTEST", 0.1)
    monkeypatch.setattr(supervisor, "POLL", 0.02)


def test_a_crash_is_told_restarted_refused_for_a_while_and_overcome(tmp_path):
    events = Lab(tmp_path, "crashes", "is refused", "is refused", "connects").events(5)
    assert [event.state for event in events] == ["connected", "ended", "refused", "refused", "connected", "stopped"]
    assert "status -9" in events[1].reason
    assert "because of the crash (or cut connection) less than 60 s ago" in events[2].reason
    assert events[3].wait > events[2].wait


def test_a_key_that_is_not_known_is_told_as_such(tmp_path):
    (event, _) = Lab(tmp_path, "is refused").events(1)
    assert "does not take this key" in event.reason and str(event).endswith("retrying in 0 s")


def test_flower_is_not_started_while_the_coordinator_is_away(tmp_path):
    lab = Lab(tmp_path, "connects", problems=["lab:1: nobody listens", "lab:1: nobody listens"])
    assert [event.state for event in lab.events(3)] == ["unreachable", "unreachable", "connected", "stopped"]
    assert len(lab.children) == 1


def test_a_lost_network_is_told_while_flower_tries_by_itself(tmp_path):
    lab = Lab(tmp_path, "loses", problems=[None, "lab:1: no answer"])
    events = lab.events(3)
    assert [event.state for event in events] == ["connected", "unreachable", "connected", "stopped"]
    assert len(lab.children) == 1


def test_a_supernode_that_hangs_after_its_last_words_is_ended_and_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "HANGS", 0.2)
    events = Lab(tmp_path, "hangs", "is refused", "connects").events(4)
    assert [event.state for event in events] == ["connected", "ended", "refused", "connected", "stopped"]
    assert "the connection was cut and Flower gave up" in events[1].reason
    assert "(or cut connection)" in events[2].reason


def test_what_else_ends_it_is_told_with_its_last_words(tmp_path):
    (event, _) = Lab(tmp_path, "breaks").events(1)
    assert event.state == "ended" and "status 3: ImportError: no torch" in event.reason


def test_the_longest_wait_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LONGEST", 0.15)
    lab = Lab(tmp_path, problems=["away"] * 10)
    assert [event.wait for event in lab.events(4)[:4]] == pytest.approx([0.1, 0.14, 0.15, 0.15])


def test_what_has_not_changed_is_not_said_again_for_a_while():
    away, back = Told("unreachable", "away", 4.0), Told("connected", "here")
    times = iter([0, 1, 2, 3, 4, 700, 700])
    events = [away, Told("unreachable", "away", 5.6), back, away, away, away]
    assert list(changes(iter(events), lambda: next(times))) == [away, back, away, away]


def test_lines_are_read_once_they_are_whole(tmp_path):
    log = tmp_path / "log"
    assert new_lines(log, 0) == ([], 0)
    log.write_bytes(b"one\n\x1b[92mtw")
    lines, read = new_lines(log, 0)
    assert lines == ["one"]
    log.write_bytes(b"one\n\x1b[92mtwo\x1b[0m\n")
    assert new_lines(log, read)[0] == ["two"]


def test_a_unit_holds_the_command_with_its_paths_quoted():
    text = unit("pi1", "pi", ["/opt/v/bin/python", "-m", "ticketlab", "/home/pi/my data/100%.join"])
    assert 'ExecStart=/opt/v/bin/python -m ticketlab "/home/pi/my data/100%%.join"' in text
    for line in ("User=pi", "Restart=always", "NoNewPrivileges=yes", "After=network-online.target time-sync.target"):
        assert line in text.splitlines()
    assert quoted('a"b$c\\') == '"a\\"b$$c\\\\"'
