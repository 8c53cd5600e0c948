"""What runs on a client, in a fresh process for every message: receive, train, answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ticketlab.codec import Sparse, decode, encode, mask_digest
from ticketlab.data.batches import Examples, split
from ticketlab.data.files import Places
from ticketlab.data.partition import partitions
from ticketlab.data.sources import load_dataset
from ticketlab.errors import UnknownMask
from ticketlab.federate.local import train_locally
from ticketlab.models.build import network_from
from ticketlab.pruning.masks import Mask
from ticketlab.recipe import TrainSection
from ticketlab.seeds import derive_seed

BLOB, ARRAYS, TASK, METRICS, MEMORY = "blob", "arrays", "task", "metrics", "ticket"
"""Names of what messages hold, and of what a client remembers."""
NEEDS_MASK = "needs-mask"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; answers that it needs the mask where it does not have it."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    task = json.loads(str(message.content[TASK]["json"]))
    content, known = blob_of(message.content), _known(context)
    try:
        received = decode(content, known=known)
    except UnknownMask:
        return Message(RecordDict({TASK: ConfigRecord({NEEDS_MASK: True})}), reply_to=message)
    if known is None or mask_digest(known) != mask_digest(received.mask):
        context.state[MEMORY] = ConfigRecord({BLOB: encode(received)})
    model = network_from(received.state, received.facts)
    seed = derive_seed(task["seed"], "client", task["index"], task["round"])
    section = TrainSection.model_validate(task["train"])
    done = train_locally(model, received, section, _examples(received.facts, task, context), task["epochs"], seed)
    answer = encode(Sparse(received.mask, done.state, {"round": task["round"]}), task["precision"], is_known=True)
    metrics: dict[str, int | float | list[int] | list[float]] = {
        "num-examples": done.examples,
        "accuracy": done.accuracy,
        "loss": done.loss,
        "seconds": time.perf_counter() - began,
    }
    return Message(RecordDict({ARRAYS: arrays(answer), METRICS: MetricRecord(metrics)}), reply_to=message)


def arrays(content: bytes) -> ArrayRecord:
    """Bytes as Flower carries them."""
    return ArrayRecord(array_dict={BLOB: Array(np.frombuffer(content, np.uint8))})


def blob_of(content: RecordDict) -> bytes:
    """The bytes of a message; raises KeyError where it has none."""
    return content.array_records[ARRAYS][BLOB].numpy().tobytes()


def _known(context: Context) -> Mask | None:
    """The mask that came with an earlier message; a client that was restarted has none."""
    if MEMORY not in context.state:
        return None
    return decode(bytes(context.state.config_records[MEMORY][BLOB])).mask  # type: ignore[arg-type]


def _examples(facts: dict[str, Any], task: dict[str, Any], context: Context) -> Examples:
    """This client's own training examples."""
    folder = str(context.node_config.get("data", ""))
    places = Places.default(Path(folder) if folder else None)
    dataset = load_dataset(facts["data"], places)
    train_examples = split(dataset, facts["validation"], facts["split_seed"]).train
    parts = partitions.find(task["partition"])(
        train_examples, task["clients"], task["seed"], **task["partition_options"]
    )
    return train_examples.some(parts[task["index"]])
