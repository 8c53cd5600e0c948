"""A unit that joins at every start of a device and whenever it was thrown out."""

from __future__ import annotations

from collections.abc import Sequence

UNIT = """\
[Unit]
Description=ticketlab client {name}
After=network-online.target time-sync.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User={user}
Environment=PYTHONUNBUFFERED=1
ExecStart={command}
Restart=always
RestartSec=15
# the supervisor stops its own child, which then signs off
KillMode=mixed
TimeoutStopSec=30
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def service(name: str) -> str:
    """What the unit of a client is called."""
    return f"ticketlab-{name}"


def unit(name: str, user: str, command: Sequence[str]) -> str:
    """The text of a client's unit; the command's paths have to be absolute."""
    return UNIT.format(name=name, user=user, command=" ".join(quoted(word) for word in command))


def quoted(word: str) -> str:
    """A word of a command as systemd reads it: its own quotes, no variables, no specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word or "'" in word else word
