"""What single weights do to loss and signal: gradients, curvature and flow, in double precision on the CPU.

In double precision because products over many layers leave the range of single precision, and so that ties and
orders do not depend on the machine. The network given is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from ticketlab.data.batches import Examples, normalise
from ticketlab.errors import Interrupted, PruningError, Stop
from ticketlab.models.compact import NORMS
from ticketlab.pruning.masks import State

BATCH = 100
"""Examples at a time, of which batch norms in training mode take their statistics."""
AT_ONCE = 4
"""Examples whose own gradients are held at a time."""
DAMPING = 1e-4
"""Part of the mean second moment that is added to each input's own."""
MOST_INPUTS = 4096
TEMPERATURE = 200.0
"""By which logits are divided before the gradient of a gradient is taken (Wang, Zhang & Grosse 2020, code)."""


@dataclass(frozen=True)
class Probe:
    """A network and the examples that it is looked at with."""

    model: nn.Module
    examples: Examples
    names: Sequence[str]
    """Of the weights in question."""
    should_stop: Stop = lambda: False
    """Asked before each batch, and before the flow is measured."""

    def go_on(self) -> None:
        """Raises Interrupted where it is time to stop."""
        if self.should_stop():
            raise Interrupted("stopped while the network was looked at; all before is saved, the same command goes on")

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights in question, of a copy of the model."""
        named = dict(model.named_parameters())
        return [named[name] for name in self.names]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images in double precision with their labels, in batches of about the same size."""
        count = -(-len(self.examples) // BATCH)
        parts = zip(self.examples.images.tensor_split(count), self.examples.labels.tensor_split(count), strict=True)
        for images, labels in parts:
            self.go_on()
            yield normalise(images, self.examples).double(), labels

    def in_training(self) -> nn.Module:
        """A copy in double precision; batch norms see the statistics of a batch, and nothing is dropped."""
        model = copy.deepcopy(self.model).cpu().double().eval()
        for layer in model.modules():
            if isinstance(layer, NORMS):
                layer.train()
        return model

    def in_evaluation(self) -> nn.Module:
        """A copy in double precision; batch norms use their running statistics."""
        return copy.deepcopy(self.model).cpu().double().eval()


def loss_gradients(probe: Probe) -> State:
    """∂L/∂w of the mean cross-entropy over all examples; batch norms in training mode."""
    model = probe.in_training()
    return dict(zip(probe.names, _gradients(probe, model, 1.0), strict=True))


def _gradients(probe: Probe, model: nn.Module, temperature: float) -> list[Tensor]:
    parameters = probe.parameters(model)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for images, labels in probe.batches():
        loss = functional.cross_entropy(model(images) / temperature, labels, reduction="sum")
        for whole, part in zip(total, _derivatives([loss], parameters), strict=True):
            whole.add_(part, alpha=1 / len(probe.examples))
    return total


def _derivatives(of: Sequence[Tensor], by: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Gradients of a sum; zero of what it does not depend on, such as layers that the network never uses."""
    return torch.autograd.grad(of, by, create_graph=create_graph, materialize_grads=True, allow_unused=True)


def hessian_gradients(probe: Probe) -> State:
    """Hg: the Hessian of the loss, over the weights in question, times their gradient; logits are divided by 200.

    As the derivative of gᵀ(∂L/∂w) with g held fixed. Source: Wang, Zhang & Grosse 2020 (GraSP), equation 8.
    """
    model = probe.in_training()
    parameters = probe.parameters(model)
    fixed = _gradients(probe, model, TEMPERATURE)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for images, labels in probe.batches():
        loss = functional.cross_entropy(model(images) / TEMPERATURE, labels, reduction="sum")
        found = _derivatives([loss], parameters, create_graph=True)
        products = [(one * other).sum() for one, other in zip(found, fixed, strict=True)]
        for whole, part in zip(total, _derivatives([p for p in products if p.requires_grad], parameters), strict=True):
            whole.add_(part, alpha=1 / len(probe.examples))
    return dict(zip(probe.names, total, strict=True))


def flow_gradients(probe: Probe) -> State:
    """∂R/∂|w|, where R is the sum of outputs for an input of ones with the absolute values of all parameters.

    Batch norms use their running variances, and means of zero. Source: Tanaka et al. 2020 (SynFlow), equation 2.
    """
    probe.go_on()
    model = probe.in_evaluation()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for layer in model.modules():
            mean = getattr(layer, "running_mean", None)
            if isinstance(mean, Tensor):
                mean.zero_()  # what a trained batch norm takes away would leave no flow
    shape = probe.examples.images.shape[1:]
    outputs = model(torch.ones(1, *shape, dtype=torch.float64))
    return dict(zip(probe.names, _derivatives([outputs.sum()], probe.parameters(model)), strict=True))


def squared_gradients(probe: Probe) -> State:
    """Mean over examples of each one's own (∂L/∂w)²: the diagonal of the empirical Fisher matrix.

    Batch norms use their running statistics.
    """
    return _mean_squares(probe, lambda shares, labels: [shares - functional.one_hot(labels, shares.shape[1])])


def curvatures(probe: Probe) -> State:
    """∂²L/∂w² of the mean cross-entropy, by the Gauss–Newton formula; batch norms use their running statistics.

    Σ_c p_c (J_c − Σ_k p_k J_k)² with J_c = ∂ logit_c/∂w and p the softmax. For networks that are piecewise linear in
    each weight, such as those with ReLU, this is the exact diagonal of the Hessian that optimal brain damage (LeCun,
    Denker & Solla 1990, equation 4) approximates by backpropagation.
    """
    return _mean_squares(
        probe,
        lambda shares, _: [
            shares[:, [at]].sqrt() * (torch.eye(shares.shape[1], dtype=shares.dtype)[at] - shares)
            for at in range(shares.shape[1])
        ],
    )


def _mean_squares(probe: Probe, directions: Callable[[Tensor, Tensor], Sequence[Tensor]]) -> State:
    """Σ over directions v of the mean over examples of (Σ_c v_c ∂ logit_c/∂w)².

    Args:
        directions: (softmax, labels) → vectors v, (examples, classes) each.
    """
    model = probe.in_evaluation()
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in probe.names}
    total = {name: torch.zeros_like(layer.get_parameter("weight")) for name, layer in layers.items()}
    for images, labels in probe.batches():
        with _calls(layers) as calls:
            logits: Tensor = model(images)
        outputs = [output for _, _, output in calls]
        for vector in directions(logits.detach().softmax(1), labels):
            above = torch.autograd.grad(logits, outputs, vector, retain_graph=True)
            for name, layer in layers.items():
                own = [(call[1], one) for call, one in zip(calls, above, strict=True) if call[0] == name]
                total[name] += _sum_of_squares(layer, own) / len(probe.examples)
    return {name: found.detach() for name, found in total.items()}


@contextmanager
def _calls(layers: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Name, input and output of each call of these layers within the block."""
    found: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            found.append((name, inputs[0].detach().clone(), output))
            return output.clone()  # which the next layer may change in place

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def _sum_of_squares(layer: nn.Module, calls: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over examples of the square of each one's gradient of a layer's weight.

    Args:
        calls: Inputs of each call with the gradients of its outputs; examples first.
    """
    if isinstance(layer, nn.Linear) and len(calls) == 1 and calls[0][0].dim() == 2:
        inputs, above = calls[0]
        return above.square().t() @ inputs.square()  # each gradient is an outer product

    def through(weight: Tensor, one: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        outputs = [functional_call(layer, {"weight": weight}, (inputs[None],))[0] for inputs, _ in one]
        return sum(((output * above).sum() for output, (_, above) in zip(outputs, one, strict=True)), torch.zeros(()))

    weight = layer.get_parameter("weight").detach()
    total = torch.zeros_like(weight)
    if not calls:
        return total
    for first in range(0, len(calls[0][0]), AT_ONCE):
        some = [(inputs[first : first + AT_ONCE], above[first : first + AT_ONCE]) for inputs, above in calls]
        total += vmap(grad(through), (None, 0))(weight, some).square().sum(0)
    return total


def input_moments(probe: Probe) -> State:
    """Second moments of each layer's inputs, (inputs, inputs): the Hessian of the squared error of its outputs.

    Mean over examples and, of a convolution, sum over positions, an input for each weight of a filter; plus a part of
    the mean diagonal, because inputs that are always zero have no inverse. Batch norms use their running statistics.
    Raises PruningError for layers that are neither linear nor plain 2-D convolutions of up to 4,096 inputs.
    """
    model = probe.in_evaluation()
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in probe.names}
    total = {name: torch.zeros(_inputs(name, layer), _inputs(name, layer)).double() for name, layer in layers.items()}
    for images, _ in probe.batches():
        with torch.no_grad(), _calls(layers) as calls:
            model(images)
        for name, inputs, _ in calls:
            rows = _rows(layers[name], inputs)
            total[name].addmm_(rows.t(), rows, alpha=1 / len(probe.examples))
    for moments in total.values():
        moments.diagonal().add_(DAMPING * moments.diagonal().mean().clamp(min=1e-12))
    return total


def check_surgeon(model: nn.Module, names: Sequence[str]) -> None:
    """Raise PruningError for weights of layers that `input_moments` cannot treat."""
    for name in names:
        _inputs(name, model.get_submodule(name.removesuffix(".weight")))


def _inputs(name: str, layer: nn.Module) -> int:
    """Inputs of a unit or filter."""
    count = layer.get_parameter("weight")[0].numel()
    is_plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
    if count > MOST_INPUTS or not (is_plain or isinstance(layer, nn.Linear)):
        kinds = f"linear layers and 2-D convolutions of up to {MOST_INPUTS:,} inputs"
        raise PruningError(f"{name}: optimal brain surgeon is for {kinds}, without groups or named padding")
    return count


def _rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What each unit sees, a row for each example and position, (rows, inputs)."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str), "checked with its inputs"
    parts = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return parts.transpose(1, 2).flatten(0, 1)


def inverse_hessians(probe: Probe) -> State:
    """[H⁻¹]_qq for each weight q of a layer, H the second moments of its inputs; the same for all units.

    Source: Hassibi & Stork 1993 (optimal brain surgeon), equation 5, layer by layer as in Dong, Chen & Pan 2017.
    """
    found: State = {}
    for name, moments in input_moments(probe).items():
        weight = dict(probe.model.named_parameters())[name]
        diagonal = torch.cholesky_inverse(torch.linalg.cholesky(moments)).diagonal()
        found[name] = diagonal.view(weight.shape[1:]).expand(weight.shape)
    return found


@dataclass(frozen=True)
class Measured:
    """A kind of evidence: how it is measured, and what that costs."""

    of: Callable[[Probe], State]
    passes: Callable[[int, int], float]
    """(examples, classes) → forward and backward passes of one example."""


MEASURED = {
    "gradient": Measured(loss_gradients, lambda examples, classes: examples),
    "hessian_gradient": Measured(hessian_gradients, lambda examples, classes: 3.0 * examples),
    "flow_gradient": Measured(flow_gradients, lambda examples, classes: 1.0),
    "squared_gradient": Measured(squared_gradients, lambda examples, classes: examples),
    "inverse_hessian": Measured(inverse_hessians, lambda examples, classes: examples),
    "curvature": Measured(curvatures, lambda examples, classes: float(classes * examples)),
}
"""By the name of the evidence."""


def measure(probe: Probe, needs: Collection[str]) -> dict[str, State]:
    """Each kind of evidence that is needed and measured with examples: name → weight → numbers of its shape."""
    return {name: MEASURED[name].of(probe) for name in MEASURED if name in needs}


def passes(needs: Collection[str], examples: int, classes: int) -> float:
    """Forward and backward passes of one example that `measure` takes."""
    return sum(MEASURED[name].passes(examples, classes) for name in MEASURED if name in needs)
