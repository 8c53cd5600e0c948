"""A client's process lives for one message, so what it loads is part of every round."""

import subprocess
import sys

import pytest

HEAVY = ("scipy", "sklearn", "pandas", "torch._dynamo", "torchvision", "onnx", "matplotlib")

ONE_ROUND = """
import sys
import torch
from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples
from ticketlab.federate.rules.rule import Work, works
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked
from ticketlab.recipe import FederateSection
from ticketlab.workflows import federate_client

torch.manual_seed(0)
model = models.find("lenet_300_100")((1, 8, 8), 10)
mask = {name: torch.rand(kept.shape) < 0.1 for name, kept in full_mask(model).items()}
one = torch.ones(1, 1, 1)
examples = Examples(torch.randint(0, 255, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10, one / 255, one * 0)
received = Sparse(mask, masked(model.state_dict(), mask), {})
reply = works.find("train")(Work(model, received, examples, examples, FederateSection(proximal=0.1), {}, 0))
assert 0 < reply.loss < 10
print(" ".join(name for name in sys.argv[1:] if name in sys.modules))
"""


@pytest.mark.slow
def test_a_round_loads_nothing_that_takes_long_and_is_not_needed():
    ran = subprocess.run([sys.executable, "-c", ONE_ROUND, *HEAVY], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
