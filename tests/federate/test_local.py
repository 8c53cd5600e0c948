import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.data.batches import split
from ticketlab.data.sources import load_dataset
from ticketlab.errors import FormatError
from ticketlab.federate.local import train_locally
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked
from ticketlab.recipe import TrainSection

TRAIN = TrainSection(optimizer="sgd", lr=0.1, batch_size=32, steps="1ep", weight_decay=1e-3, momentum=0.9)


@pytest.fixture
def ticket(places):
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 8, 8), 10, widths={"fc1": 40, "fc2": 20})
    mask = {name: torch.rand(kept.shape) < 0.2 for name, kept in full_mask(model).items()}
    examples = split(load_dataset("digits", places), 200, 0).train
    return model, Sparse(mask, masked(model.state_dict(), mask), {}), examples


def test_removed_weights_stay_exactly_zero_and_the_rest_moves(ticket):
    model, received, examples = ticket
    done = train_locally(model, received, TRAIN, examples, epochs=2, seed=1)
    for name, kept in received.mask.items():
        assert bool((done.state[name][~kept] == 0).all())
        assert not torch.equal(done.state[name], received.state[name])
    assert done.examples == len(examples)
    assert 0 <= done.accuracy <= 1 and done.loss > 0


def test_the_same_seed_gives_the_same_answer_and_training_helps(ticket):
    model, received, examples = ticket
    first, again = (train_locally(model, received, TRAIN, examples, 3, 5) for _ in range(2))
    assert all(torch.equal(first.state[name], value) for name, value in again.state.items())
    after = train_locally(model, Sparse(received.mask, first.state, {}), TRAIN, examples, 1, 5)
    assert after.accuracy > first.accuracy + 0.3


def test_a_network_that_is_another_or_not_finite_is_refused(ticket):
    model, received, examples = ticket
    other = {**received.state, "fc1.bias": torch.zeros(3)}
    with pytest.raises(FormatError, match="other layers"):
        train_locally(model, Sparse(received.mask, other, {}), TRAIN, examples, 1, 0)
    broken = {**received.state, "fc1.bias": torch.full((40,), torch.nan)}
    with pytest.raises(FormatError, match="not finite"):
        train_locally(model, Sparse(received.mask, broken, {}), TRAIN, examples, 1, 0)
