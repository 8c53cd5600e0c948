"""Names of methods that stand side by side: what they are, and the settings in which they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def common_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each field that is not the same wherever it has a meaning, the most frequent value."""
    fields = dict.fromkeys(name for one in settings for name in one)
    values = {name: Counter(json.dumps(one[name]) for one in settings if name in one) for name in fields}
    return {name: json.loads(found.most_common(1)[0][0]) for name, found in values.items() if len(found) > 1}


def unnamed(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are no variant, which has a name of its own."""
    return [one for one in settings if not one.get("variant")]


def method_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each: its variant's, or method and criterion; and what differs from those of such a name."""
    common = {None: common_settings(unnamed(settings))}
    for variant in {one["variant"] for one in settings if one.get("variant")}:
        common[variant] = common_settings([one for one in settings if one.get("variant") == variant])
    return [" ".join([*_begun(one), *_unusual(one, common[one.get("variant")])]) for one in settings]


def _begun(one: Mapping[str, Any]) -> list[str]:
    return [one["variant"]] if one.get("variant") else [one["method"], one["pruning.criterion"]]


TOLD = {False: ("method", "pruning.criterion", "variant"), True: ("variant",)}
"""What a name begins with, of a method and of a variant."""


def _unusual(one: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.rpartition('.')[2]}={_short(one[name])}"
        for name, usual in common.items()
        if name not in TOLD[bool(one.get("variant"))] and name in one and one[name] != usual
    ]


def said(common: Mapping[str, Any]) -> str:
    """Common settings in words; what names tell anyway, or what is simply left out, is not said."""
    told = {name: value for name, value in common.items() if name not in TOLD[False] and value}
    return ", ".join(f"{name} {_short(value)}" for name, value in told.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items()) or "none"
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)
