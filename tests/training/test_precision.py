"""Training in bfloat16 and channels-last: the same invariants as in float32."""

from dataclasses import replace

import pytest
import torch
from support import equal, states, untimed

from ticketlab.errors import Interrupted, RecipeError
from ticketlab.report import run_levels
from ticketlab.training.loop import Adjust, train_steps
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.run import Machine, Started, prune_run

CONVOLUTIONS = (
    "model={name: conv_2, options: {widths: {conv1: 4, conv2: 4, fc1: 256, fc2: 16}}}",
    "train={steps: 12it, batch_size: 32, evaluate_every: 4it, precision: bf16, channels_last: true}",
    "pruning={levels: 1, rate: 0.9, output_rate: 0.1}",
    "watch=[sign_flips]",
)


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu", workers=1)


def finish(file, machine):
    (store,) = [event.store for event in prune_run(file, machine) if isinstance(event, Started)]
    return store


def test_removed_weights_stay_zero_and_an_interrupted_run_gives_the_same_bits(tiny, machine, tmp_path):
    file = tiny(*CONVOLUTIONS)
    whole = finish(file, machine)
    mask, final = whole.read_ticket(1, 1).mask, whole.read_weights(1, 1, "final")
    assert all(not kept.all() and not final[name][~kept].any() for name, kept in mask.items())
    assert all(value.dtype == torch.float32 for name, value in final.items())
    elsewhere = replace(machine, runs=tmp_path / "elsewhere")
    for steps in (3, 14):
        asked = iter([False] * steps + [True] * 100)
        with pytest.raises(Interrupted):
            list(prune_run(file, elsewhere, lambda asked=asked: next(asked)))
    resumed = finish(file, elsewhere)
    assert [untimed(level) for level in run_levels(resumed)] == [untimed(level) for level in run_levels(whole)]
    assert equal(states(resumed, 2), states(whole, 2))


def test_sparse_linear_layers_train_under_bfloat16(tiny, machine):
    plan = "pruning={levels: 1, rate: 0.9, output_rate: 0.1}"
    plain, half = (finish(tiny(plan, f"train.precision={word}"), machine) for word in ("float32", "bf16"))
    losses = [store.levels(1)[1].curve[-1]["train_loss"] for store in (plain, half)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def loss_of_one_step(adjust):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    # 1 + 1/512 lies between two neighbours of bfloat16, 1 and 1 + 1/128
    model[0].weight.data = torch.tensor([[1.0 + 2**-9, 0.0], [0.0, 0.0]])
    batch = iter([(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (step,) = train_steps(model, batch, optimizer, lambda _: 0.0, {}, 0, 1, adjust)
    assert model[0].weight.dtype == torch.float32
    return step.loss


def test_bfloat16_rounds_the_products_and_not_the_loss():
    exact = -torch.log_softmax(torch.tensor([1.0 + 2**-9, 0.0]), 0)[0]
    rounded = -torch.log_softmax(torch.tensor([1.0, 0.0]), 0)[0]
    assert torch.equal(loss_of_one_step(Adjust()), exact)
    assert torch.equal(loss_of_one_step(Adjust(bfloat16=True)), rounded)


def test_channels_last_reaches_the_layers():
    seen = []
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.Flatten())
    model[0].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].stride(), output.stride())))
    batch = iter([(torch.zeros(1, 2, 3, 3), torch.tensor([0]))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    list(train_steps(model, batch, optimizer, lambda _: 0.1, {}, 0, 1, Adjust(channels_last=True)))
    assert seen == [((18, 1, 6, 2), (18, 1, 6, 2))]
    assert model[0].weight.is_contiguous()


def test_channels_last_without_a_convolution_is_refused(tiny, places):
    with pytest.raises(RecipeError, match=r"train\.channels_last: the model has no convolution that it would speed up"):
        make_plan(*load_data(tiny("train.channels_last=true"), places))
