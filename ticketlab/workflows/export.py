"""Trained network → files that other programs load; each is run on real images before it is accepted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ticketlab.data.batches import Examples, normalise
from ticketlab.errors import FailedRun, FormatError
from ticketlab.formats import find_format
from ticketlab.formats.format import Format, Loaded, Network, Precision, spoken, torch_runner
from ticketlab.runs.files import REJECTED, read_json, write_json, write_judged
from ticketlab.runs.results import EXPORTED
from ticketlab.workflows.ship import Shipment

IMAGES = 5000
"""Validation images, at most, that a file must answer as the network does."""
FEWEST = 200
"""Fewer cannot tell whether 99 % of the answers are the same."""
CALIBRATION = 512
"""Training images that static int8 takes its ranges from."""
BATCH = 250
AGREEMENT = 0.99
"""Share of images to which a file of lower precision must give the network's own answer."""
ACCURACY_LOSS = 0.005
"""How much validation accuracy it may lose."""


SHOWN = ("network", "format", "precision", "bytes", "top1_agreement", "test_accuracy", "accepted", "reason")
"""Of each file, what TensorBoard shows."""


@dataclass(frozen=True)
class Judged:
    """How a file answers beside the network that it was made from; shares of 1."""

    max_abs_diff: float
    top1_agreement: float
    val_accuracy: float
    images: int
    reason: str | None
    """Why it is rejected; None where it is accepted."""


def export_network(
    given: Shipment, wanted: Sequence[tuple[str, Precision]], folder: Path, images: int = IMAGES
) -> Iterator[dict[str, Any]]:
    """Write a network in each format and precision; yields the record of each file as `--json` prints it.

    Raises FormatError before anything is written where one of them cannot be made.
    """
    check(given.network, wanted)
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"--out {folder}: is a file; name a folder")
    calibration, examples = calibration_images(given), given.splits.validation.first(images)
    made = {
        (name, precision): find_format(name).make(labelled(given.network, precision), precision, calibration)
        for name, precision in wanted
    }
    own = own_answers(given.network, examples)
    for (name, precision), content in made.items():
        found = find_format(name)
        loaded = found.open(content, like=given.network.model)
        judged = judge(own, loaded, found, precision, examples)
        accuracy = _accuracy(_answers(loaded, given.splits.test), given.splits.test)
        path = folder / f"{_stem(given)}{_infix(precision)}{found.suffix}"
        record = {"format": name, "precision": precision, **_put(path, content, judged), "test_accuracy": accuracy}
        _keep(folder, given, record)
        yield record


def _put(path: Path, content: bytes, judged: Judged) -> dict[str, Any]:
    """Put a judged file in its place; raises FailedRun where that is not possible."""
    try:
        written = write_judged(path, content, judged.reason is None)
    except OSError as error:
        raise FailedRun(f"{path.parent}: cannot be written ({error.strerror or error})") from error
    sizes = {"bytes": len(content), "bytes_zlib": len(zlib.compress(content, 9))}
    return {"path": str(written), **sizes, **asdict(judged), "accepted": judged.reason is None}


def _keep(folder: Path, given: Shipment, record: dict[str, Any]) -> None:
    """Put a file's record among those of the folder; a newer one of the same file takes the older one's place."""
    path = folder / EXPORTED
    known = read_json(path)["files"] if path.exists() else []
    name = record["path"].removesuffix(REJECTED)
    others = [other for other in known if other["path"].removesuffix(REJECTED) != name]
    files = [*others, {"network": given.network.name, **record}]
    write_json(path, {"files": files})
    if given.store.path.resolve() in folder.resolve().parents:  # elsewhere the files are on their way to a device
        from ticketlab.runs.tensorboard import write_table

        write_table(folder, "exports", [{name: one[name] for name in SHOWN} for one in files], {})


def check(network: Network, wanted: Sequence[tuple[str, Precision]]) -> None:
    """Raise FormatError with everything that cannot be made."""
    problems = []
    for name, precision in wanted:
        try:
            found = find_format(name)
            found.check(name)
            if precision not in found.precisions:
                raise FormatError(f"{name} has no {spoken(precision)}; it has {found.offers()}")
            if found.refuses is not None and (why := found.refuses(network, precision)):
                raise FormatError(f"{name}: {why}")
        except FormatError as error:
            problems.append(str(error))
    if problems:
        raise FormatError("\n".join(dict.fromkeys(problems)))


def labelled(network: Network, precision: Precision) -> Network:
    """The network with its precision among its facts."""
    return replace(network, facts={**network.facts, "precision": precision})


def calibration_images(given: Shipment) -> Tensor:
    """Training images, normalised, from which static int8 takes the ranges of activations."""
    train = given.splits.train.first(CALIBRATION)
    return normalise(train.images, train)


def own_answers(network: Network, examples: Examples) -> np.ndarray:
    """What the network itself says, (examples, classes)."""
    return _answers(Loaded(torch_runner(network.model), {}), examples)


def judge(own: np.ndarray, loaded: Loaded, made: Format, precision: Precision, examples: Examples) -> Judged:
    """Compare a file's answers on real images with the network's own."""
    answers = _answers(loaded, examples)
    difference = float(np.abs(answers - own).max())
    agreement = float((answers.argmax(1) == own.argmax(1)).mean())
    accuracy, before = _accuracy(answers, examples), _accuracy(own, examples)
    reason = None
    if precision != "float32" and len(examples) < FEWEST:
        reason = f"only {len(examples)} validation images: too few to tell"
    elif not np.isfinite(answers).all():
        reason = "answers that are not finite"
    elif precision == "float32" and difference > made.tolerance:
        reason = f"logits differ by {difference:.2g}, more than {made.tolerance:g}"
    elif precision != "float32" and agreement < AGREEMENT:
        reason = f"the same answer for {100 * agreement:.2f} % of images only, not {100 * AGREEMENT:g} %"
    elif precision != "float32" and accuracy < before - ACCURACY_LOSS:
        lost = 100 * (before - accuracy)
        reason = f"validation accuracy falls by {lost:.2f} points, more than {100 * ACCURACY_LOSS:g}"
    return Judged(difference, agreement, accuracy, len(examples), reason)


def _answers(loaded: Loaded, examples: Examples) -> np.ndarray:
    parts = examples.images.split(BATCH)
    return np.concatenate([loaded.run(normalise(part, examples).numpy()) for part in parts])


def _accuracy(answers: np.ndarray, examples: Examples) -> float:
    return float((torch.from_numpy(answers).argmax(1) == examples.labels).double().mean())


def _stem(given: Shipment) -> str:
    source = given.network.facts["source"]
    if given.kind == "fused":
        return given.store.name
    return f"{given.store.name}-level_{source['level']}" + (
        f"-replicate_{source['replicate']}" if source["replicate"] != 1 else ""
    )


def _infix(precision: Precision) -> str:
    return "" if precision == "float32" else f".{precision}"
