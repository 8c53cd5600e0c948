"""What commands leave in a run beside its levels: the names of their records and networks."""

FUSED, FUSED_NETWORK = "fused.json", "fused.safetensors"
FEDERATED, FEDERATED_NETWORK = "federated.json", "federated.ticket"
REQUEST = "federation.json"
"""What a federation was asked to do."""
STUDY, STUDY_ROWS = "study.json", "cells/replicate_*.jsonl"
CLAIMS = "claims.json"
SUPERMASK = "supermask/supermask.json"
INSTABILITY = "stability.json"
STABILITY = f"stability*/**/{INSTABILITY}"
"""There may be several: one for each way of looking."""
EXPORTED = "export.json"
EXPORTS = f"export/{EXPORTED}"
BENCH, BENCHED = "bench", "bench.json"
"""Folder beside the runs, and the record in it."""

OF_KIND = {"fuse": FUSED, "federate": FEDERATED, "study": STUDY}
"""The record that a run of each kind but pruning ends with."""


def control_folder(level: int) -> str:
    """Where the controls of a level are kept, in the run."""
    return f"controls/level_{level}"


def control_record(level: int) -> str:
    """The record of a level's controls."""
    return f"{control_folder(level)}/controls.json"
