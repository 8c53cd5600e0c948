import copy

import pytest
import torch
from torch import nn

from ticketlab.training.plain_sgd import PlainSgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_takes_torchs_steps(momentum):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    other = copy.deepcopy(model)
    ours = PlainSgd(model.parameters(), 0.1, momentum)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=momentum, foreach=False)
    for step in range(5):
        inputs, labels = torch.randn(8, 6), torch.randint(3, (8,))
        rate = 0.1 / (step + 1)
        for network, optimizer in ((model, ours), (other, theirs)):
            network.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_parameter_without_a_gradient_stays():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.tensor([1.0, 2.0])
    PlainSgd([used, unused], 0.5, 0.9).step()
    assert used.tolist() == [0.5, 0.0] and unused.tolist() == [1.0, 1.0]
