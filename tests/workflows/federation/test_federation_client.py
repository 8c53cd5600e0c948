"""Whose examples a client trains on, decides by and shows; what it remembers of float16; what its process loads."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ticketlab.data.dataset import Dataset
from ticketlab.errors import DataError
from ticketlab.recipe import FederateSection
from ticketlab.workflows.federation import client as federate_client
from ticketlab.workflows.federation.client import examples_of

FACTS = {
    "data": "toy", "validation": 10, "split_seed": 0, "input_shape": [1, 1, 1], "classes": 2, "mean": [0.0],
    "std": [1.0], "per_unit": [1.0],
}  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    """110 training examples that are their own numbers, of people 1 to 5 in turn; 20 test examples from 1000 on."""
    images = torch.cat([torch.arange(110.0), torch.arange(1000.0, 1020.0)]).view(-1, 1, 1, 1)
    labels, people = torch.arange(130) % 2, torch.arange(130) % 5 + 1
    parts = [images[:110], labels[:110], images[110:], labels[110:]]
    data = Dataset("toy", *parts, (0.0,), (1.0,), 2, "here", per_unit=(1.0,), train_groups=people[:110],
                   test_groups=people[110:])  # fmt: skip
    monkeypatch.setattr(federate_client, "load_dataset", lambda name, places: data)
    federate_client._shared.cache_clear()
    return data


def numbers(examples):
    return [int(value) for value in examples.images.flatten()]


def own(index=0, clients=4, folder="", facts=FACTS, **section):
    return examples_of(facts, FederateSection(**section), {"index": index, "clients": clients}, folder)


def test_a_client_trains_on_what_it_neither_decides_by_nor_shows(toy):
    seen = []
    for index in range(4):
        found = own(index, holdout=0.2)
        train, decide, show = map(numbers, (found.train, found.validation, found.test))
        assert (len(train), len(decide), len(show)) == (20, 3, 2)  # 25 of each client, of which 5 are held out
        assert len({*train, *decide, *show}) == 25
        seen += [*train, *decide, *show]
    assert len(set(seen)) == 100  # no example is two clients', and those of the server's validation are nobody's


def test_the_same_examples_are_held_out_in_every_round_and_others_by_another_seed(toy):
    assert numbers(own(holdout=0.2).test) == numbers(own(holdout=0.2).test)
    assert set(numbers(own(holdout=0.2).train)) != set(numbers(own(holdout=0.2, seed=1).train))


def test_where_none_are_held_out_accuracy_is_on_what_it_trains_on(toy):
    found = own(holdout=0.0)
    assert len(found.train) == 25 and len(found.validation) == 0
    assert numbers(found.test) == numbers(found.train)


def test_a_person_is_shown_on_its_own_test_examples_and_decides_by_all_that_is_held_out(toy):
    for index in range(5):
        found = own(index, 5, partition="group", holdout=0.2)
        assert set(found.train.groups.tolist()) == {index + 1}
        assert numbers(found.test) == [number + 890 for number in range(110, 130) if number % 5 == index]
        total = len(found.train) + len(found.validation)
        assert len(found.validation) == round(0.2 * total) and found.test.groups.unique().tolist() == [index + 1]


def test_clients_of_several_people_are_shown_on_examples_of_their_own(toy):
    assert max(numbers(own(holdout=0.2).test)) < 110


def test_a_person_without_test_examples_is_shown_on_examples_held_out(toy, monkeypatch):
    import dataclasses

    unseen = dataclasses.replace(toy, test_groups=torch.full((20,), 9))
    monkeypatch.setattr(federate_client, "load_dataset", lambda name, places: unseen)
    found = own(0, 5, partition="group", holdout=0.2)
    assert max(numbers(found.test)) < 110 and found.test.groups.unique().tolist() == [1]


def test_clients_share_what_the_recipe_did_not_use(toy):
    part = [own(index, facts={**FACTS, "examples": 40}, holdout=0.0) for index in range(4)]
    of_clients = {number for found in part for number in numbers(found.train)}
    assert len(of_clients) == 60 and all(len(found.train) == 15 for found in part)
    everything = {number for index in range(4) for number in numbers(own(index, holdout=0.0).train)}
    assert of_clients < everything


def test_a_file_of_its_own_comes_first_and_is_partitioned_by_nobody(toy, tmp_path):
    images = np.arange(5000, 5020, dtype=np.float32).reshape(20, 1, 1, 1)
    np.savez(tmp_path / "examples.npz", images=images, labels=np.arange(20) % 2)
    found = own(3, folder=str(tmp_path), holdout=0.25)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [15, 3, 2]
    assert sorted([*numbers(found.train), *numbers(found.validation), *numbers(found.test)]) == [*range(5000, 5020)]


def test_too_few_examples_to_hold_any_out_are_told(toy, tmp_path):
    np.savez(tmp_path / "examples.npz", images=np.zeros((1, 1, 1, 1), np.float32), labels=np.zeros(1, int))
    with pytest.raises(DataError, match=r"1 examples here are too few to hold 0\.9 of them out"):
        own(folder=str(tmp_path), holdout=0.9)


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
from ticketlab.workflows.federation import client as federate_client

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
