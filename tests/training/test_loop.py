import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from ticketlab.data.batches import Examples
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked, prunable
from ticketlab.recipe import TrainSection
from ticketlab.training.loop import Adjust, evaluate, revived, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer
from ticketlab.training.trainable import make_trainable

OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    {"optimizer": "adam", "weight_decay": 1e-2},
    {"optimizer": "adamw", "weight_decay": 1e-1},
]


def section(**changes):
    return TrainSection.model_validate({"steps": "100it", "lr": 1e-2, **changes})


def random_batches(shape=(1, 28, 28), size=16):
    generator = torch.Generator().manual_seed(0)
    while True:
        yield (
            torch.randn(size, *shape, generator=generator),
            torch.randint(0, 10, (size,), generator=generator),
        )


def ticket(model, density):
    mask = {
        name: torch.rand(kept.shape, generator=torch.Generator().manual_seed(1)) < density
        for name, kept in full_mask(model).items()
    }
    model.load_state_dict(masked(model.state_dict(), mask))
    return mask


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "resnet_20"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_removed_weights_stay_positive_zero_bit_for_bit(name, optimizer):
    shape = (3, 32, 32) if name == "resnet_20" else (1, 28, 28)
    torch.manual_seed(0)
    model = models.find(name)(shape, 10)
    mask = ticket(model, 0.3)
    train = section(**optimizer)
    steps = train_steps(
        model, random_batches(shape), make_optimizer(model.parameters(), train), lambda _: 1e-2, mask, 0, 25
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    list(steps)
    assert revived(model, mask) == []
    for key, kept in mask.items():
        dead = model.state_dict()[key][~kept]
        assert not dead.any() and not dead.signbit().any()
        assert not torch.equal(model.state_dict()[key][kept], before[key][kept])


def test_a_revived_weight_is_noticed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mask = {"0.weight": torch.zeros(2, 2, dtype=torch.bool), "1.weight": torch.ones(2, 2, dtype=torch.bool)}
    assert revived(model, mask) == ["0.weight"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_dense_mask_trains_exactly_like_a_plain_loop(optimizer):
    """Dense parity: the loop against ten lines of plain PyTorch."""
    train = section(**optimizer)
    torch.manual_seed(0)
    ours = models.find("lenet_300_100")((1, 28, 28), 10)
    torch.manual_seed(0)
    plain = models.find("lenet_300_100")((1, 28, 28), 10)
    for _ in train_steps(
        ours, random_batches(), make_optimizer(ours.parameters(), train), lambda _: 1e-2, full_mask(ours), 0, 20
    ):
        pass
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    extra = {"momentum": train.momentum, "nesterov": train.nesterov} if train.optimizer == "sgd" else {}
    optimizer = kind(plain.parameters(), lr=1e-2, weight_decay=train.weight_decay, foreach=False, **extra)
    for images, labels in itertools.islice(random_batches(), 20):
        optimizer.zero_grad()
        functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_negative_weights_train_like_positive_ones():
    """A sign error in the mask once froze every negative weight of the best-known code."""
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    mask = ticket(model, 0.5)
    before = {name: model.state_dict()[name].clone() for name in mask}
    list(
        train_steps(model, random_batches(), make_optimizer(model.parameters(), section()), lambda _: 1e-2, mask, 0, 5)
    )
    for name, kept in mask.items():
        moved = model.state_dict()[name] != before[name]
        negative, positive = kept & (before[name] < 0), kept & (before[name] > 0)
        assert moved[negative].float().mean() == pytest.approx(moved[positive].float().mean().item(), abs=0.02)


def test_steps_are_counted_from_the_start_of_the_schedule_and_use_its_learning_rate():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1

    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    steps = train_steps(model, random_batches(), optimizer, rate, full_mask(model), 7, 10)
    assert [step.index for step in steps] == [8, 9, 10]
    assert asked == [7, 8, 9]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_evaluation_is_the_mean_over_all_examples_whatever_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 10))
    images = torch.randint(0, 256, (1234, 1, 3, 4), dtype=torch.uint8)
    labels = torch.randint(0, 10, (1234,))
    examples = Examples(images, labels, torch.full((1, 1, 1), 1 / 128), torch.full((1, 1, 1), -1.0))
    loss, accuracy = evaluate(model, examples)
    assert model.training
    logits = model.eval()(images.float() / 128 - 1)
    assert loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).sum().item() / 1234


def test_the_schedule_warms_up_and_drops_at_milestones():
    train = section(lr=0.8, warmup="4it", milestones=["2ep", "30it"], gamma=0.5)
    rates = [learning_rate(train, step, steps_per_epoch=10) for step in (0, 1, 3, 4, 19, 20, 29, 30)]
    assert rates == [0.2, 0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_names_of_prunable_weights_are_parameters():
    model = models.find("resnet_20")((3, 32, 32), 10)
    assert set(prunable(model)) <= set(dict(model.named_parameters()))
    assert len(prunable(model)) == 22  # 19 convolutions, 2 shortcuts, 1 output


def test_slimming_pulls_every_scale_towards_zero_by_the_same_amount():
    """One step of plain SGD with and without: the difference is -lr · s · sign(γ), and only for γ."""

    def after_a_step(slimming):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        model[1].weight.data.copy_(torch.tensor([0.5, -0.25, 1.0, 0.0]))
        optimizer = make_optimizer(model.parameters(), section(optimizer="sgd", lr=0.5))
        batches = random_batches(shape=(1, 8, 8))
        list(train_steps(model, batches, optimizer, lambda _: 0.5, {}, 0, 1, Adjust(slimming)))
        return model.state_dict()

    plain, slim = after_a_step(0.0), after_a_step(0.125)
    moved = slim["1.weight"] - plain["1.weight"]
    assert torch.allclose(moved, torch.tensor([-0.0625, 0.0625, -0.0625, 0.0]), atol=1e-7)
    assert all(torch.equal(slim[name], plain[name]) for name in plain if name != "1.weight")


@pytest.mark.parametrize("sparse", [False, True])
def test_noise_on_gradients_has_the_deviation_that_was_asked_for(sparse, monkeypatch):
    monkeypatch.setattr("ticketlab.training.sparse.PAYS_BELOW", 0.25 if sparse else -1.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
    mask = ticket(model, 0.2)
    batch = next(random_batches())
    steps = {}
    for strength in (0.0, 2.0):
        net = make_trainable(model, masked(model.state_dict(), mask), mask, torch.device("cpu"))
        assert bool(net.sparse) == sparse
        optimizer = torch.optim.SGD(net.model.parameters(), lr=1.0)
        adjust = Adjust(noise=net.noise(strength))
        list(train_steps(net.model, iter([batch]), optimizer, lambda _: 1.0, net.mask, 0, 1, adjust))
        after = net.whole(net.model.state_dict())
        steps[strength] = {name: after[name] - model.state_dict()[name] * mask[name] for name in mask}
    for name, kept in mask.items():
        noise = (steps[2.0][name] - steps[0.0][name])[kept]
        # λ · ‖g‖ / √(all weights of the tensor), whether removed ones are stored or not
        expected = 2.0 * float(steps[0.0][name].norm()) / kept.numel() ** 0.5
        assert float(noise.std()) == pytest.approx(expected, rel=0.1)
        assert not (steps[2.0][name][~kept]).any()
