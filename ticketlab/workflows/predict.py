"""An exported network on pictures from disk: what it says, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ticketlab.data.dataset import PIXELS
from ticketlab.errors import FormatError
from ticketlab.formats import format_of
from ticketlab.formats.format import Images, first_line
from ticketlab.runs.files import REJECTED

SHOWN = 3
BRIGHT = 0.4
"""Mean brightness above the training data's, in units of full scale, at which a picture is probably inverted."""


def predict(file: Path, pictures: Sequence[Path], invert: bool = False) -> dict[str, Any]:
    """Classes and probabilities for each picture; raises FormatError for a file that cannot be read."""
    name, found = format_of(file)
    found.check(name, found.runs_on)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror or error}") from error
    try:
        loaded = found.open(content)
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from error
    facts = loaded.facts
    if facts.get("per_unit", list(PIXELS)) != list(PIXELS):
        raise FormatError(f"{file}: reads the measurements of {facts['data']}, not pictures")
    pixels = np.stack([_pixels(path, facts["input_shape"], invert) for path in pictures])
    mean, std = (np.array(facts[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    try:
        logits = loaded.run(((pixels - mean) / std).astype(np.float32))
    except Exception as error:  # a runtime's own, where a file's facts do not fit its graph
        raise FormatError(f"{file}: cannot be run ({first_line(error)})") from error
    if logits.shape != (len(pictures), facts["classes"]):
        raise FormatError(f"{file}: does not answer with {facts['classes']} logits, as it says")
    rejected = [f"{file}: did not pass its gate; export.json beside it says why"] if file.suffix == REJECTED else []
    doubts = [_doubt(path, image, facts) for path, image in zip(pictures, pixels, strict=True)]
    return {
        "file": str(file),
        "format": name,
        "network": facts["name"],
        "predictions": [_prediction(path, row, facts) for path, row in zip(pictures, logits, strict=True)],
        "notes": rejected + [doubt for doubt in doubts if doubt],
    }


def _pixels(path: Path, shape: Sequence[int], invert: bool) -> Images:
    """A picture as (channels, height, width) between 0 and 1, resized where it has another size."""
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            picture = _flat(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise FormatError(f"{path}: a folder; name pictures") from error
    except Image.DecompressionBombError as error:
        raise FormatError(f"{path}: too large a picture") from error
    except (UnidentifiedImageError, OSError) as error:
        raise FormatError(f"{path}: not a picture that Pillow can read, or damaged ({error})") from error
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(picture, np.float32) / np.float32(255)
    return values.reshape(height, width, channels).transpose(2, 0, 1)


def _flat(picture: Image.Image) -> Image.Image:
    """Transparency on white, as viewers show it; 16 bits a pixel brought to 8."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if "transparency" in picture.info or "A" in picture.getbands():
        drawn = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return picture


def _doubt(path: Path, pixels: Images, facts: dict[str, Any]) -> str | None:
    usual = float(np.mean(facts["mean"]))
    if len(facts["mean"]) == 1 and pixels.mean() > usual + BRIGHT:
        return (
            f"{path}: much brighter (mean {pixels.mean():.2f}) than the pictures of {facts['data']} "
            f"(mean {usual:.2f}), whose ground is dark; try --invert"
        )
    return None


def _prediction(path: Path, logits: Images, facts: dict[str, Any]) -> dict[str, Any]:
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:SHOWN]
    likely = [{"label": facts["labels"][i], "class": int(i), "probability": float(shares[i])} for i in best]
    return {"picture": str(path), **likely[0], "likely": likely}
