"""Clients in this process, one after the other, with the same messages: for controls, experiments and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from flwr.app import Context, Error, Message, Metadata, RecordDict, UserConfigValue
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # the one private name that is used; no public one does this

FAULT = 2
"""Flower's code for a client whose program failed."""


class Direct(Grid):
    """A grid whose nodes run when their answers are asked for; each keeps its memory from message to message."""

    def __init__(
        self, clients: int, train: Callable[[Message, Context], Message], config: Mapping[str, UserConfigValue]
    ) -> None:
        _identify_()
        self._train = train
        self._contexts = {
            node: Context(run_id=0, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node in range(1, clients + 1)
        }
        self._waiting: dict[str, Message] = {}
        self._count = 0

    def get_node_ids(self) -> Iterable[int]:
        """One for each client."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their answers are asked for."""
        found = []
        for message in messages:
            self._count += 1
            found.append(str(self._count))
            self._waiting[found[-1]] = _numbered(message, found[-1])
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients that were asked."""
        return [self._answer(self._waiting.pop(each)) for each in message_ids if each in self._waiting]

    def _answer(self, message: Message) -> Message:
        try:
            return self._train(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # as Flower does: the round goes on, and the reason is told
            return Message(Error(FAULT, f"{type(error).__name__}: {error}"), reply_to=message)

    def set_run(self, run: Any) -> None:
        """There is none."""

    @property
    def run(self) -> Any:
        """There is none."""
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Flower's older way, which nobody uses here."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull in one."""
        return self.pull_messages(self.push_messages(messages))


def _identify_() -> None:
    """Let messages be made here: Flower wants a task behind each, and outside its own processes there is none."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 0


def _numbered(message: Message, number: str) -> Message:
    """The same message as a node gets it, under a number that its answer names."""
    told = message.metadata
    metadata = Metadata(
        run_id=0, message_id=number, src_node_id=0, dst_node_id=told.dst_node_id, reply_to_message_id="",
        group_id=told.group_id, created_at=told.created_at, ttl=told.ttl, message_type=told.message_type,
    )  # fmt: skip
    return Message(content=deepcopy(message.content), metadata=metadata)  # type: ignore[call-overload]
