"""A network made ready to be fused, and how many units each of its groups is to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketlab.cost import latencies, layer_macs
from ticketlab.data.batches import normalise, permutation
from ticketlab.errors import FusionError, Interrupted, Stop
from ticketlab.fusion.exact import Reduced, reduce_exactly
from ticketlab.fusion.fuse import Fused, Method, fuse
from ticketlab.fusion.groups import Group, keep_units_, named_groups, prove, removable
from ticketlab.fusion.refit import refit_
from ticketlab.fusion.trace import LOGITS, Trace, trace
from ticketlab.fusion.widths import Costs, Widths, cost_model, uniform, within
from ticketlab.registry import did_you_mean
from ticketlab.seeds import derive_seed
from ticketlab.steps import parse_duration
from ticketlab.training.distil import BATCH, distil_steps, steps_in
from ticketlab.training.loop import evaluate
from ticketlab.workflows.fuse_request import Request, seconds_of
from ticketlab.workflows.source import Source

CALIBRATION = 16_384
"""Images that a method looks at, at most."""
CALIBRATION_WORK = 1e10
"""Multiply-accumulates of one look at all of them; deeper networks get fewer images."""
LEAST_CALIBRATION = 1_024
POINTS = 0.5
"""Of validation accuracy that may be lost where nothing else is asked."""
STOPPED = "stopped; the same command starts the fusion again"
TRIES = 8
"""Networks that are tried to find the smallest one that is good enough."""


@dataclass(frozen=True)
class Workbench:
    """A source made ready: proven groups, reduced exactly."""

    source: Source
    trace: Trace
    permutation_error: float
    reduced: Reduced
    groups: list[Group]
    """Those of the reduced network that may be fused."""
    images: Tensor
    """Normalised training images; no labels."""
    costs: Costs
    asked: Widths | None
    """Exact widths, where the user gave them."""

    @property
    def model(self) -> nn.Module:
        """The network to fuse: the source's, exactly reduced."""
        return self.reduced.model


def prepare(source: Source, request: Request) -> Workbench:
    """Trace a source, prove its groups, reduce it exactly."""
    shape = source.plan.data.dataset.input_shape
    probe = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    if request.groups is not None:
        traced = Trace(named_groups(source.model, request.groups, probe), [], {})
        fixed = [group.name for group in traced.groups if not removable(source.model, group, probe)]
        if fixed:
            raise FusionError(f"--groups: {', '.join(fixed)}: the network's code counts on their number of units")
    else:
        traced = trace(source.model, probe[:1])
    error = prove(source.model, traced.groups, probe)
    reduced = reduce_exactly(source.model, traced.groups, shape)
    groups = [group for group in reduced.groups if request.stream or not group.is_stream]
    asked = None
    if request.widths is not None:
        asked = _asked(request.widths, reduced.groups, groups, {g.name: g.units for g in traced.groups})
    groups = [group for group in reduced.groups if group in groups or group.name in (asked or ())]
    if not groups and not request.exact:
        reasons = "; ".join(f"{g.name} {g.reason}" for g in traced.frozen if g.reason != LOGITS)
        raise FusionError(
            f"there is no group of units to fuse{f' ({reasons})' if reasons else ''}; --exact does what can be done, "
            "--stream fuses residual streams too"
        )
    macs = layer_macs(reduced.model, shape)
    images = calibration(source, request, sum(macs.values()))
    return Workbench(source, traced, error, reduced, groups, images, cost_model(reduced.model, groups, macs), asked)


def _asked(widths: Widths, every: Sequence[Group], usual: Sequence[Group], whole: Widths) -> Widths:
    """Widths by group; those given without names belong to the usual groups in order.

    Args:
        whole: Units before exact reduction.
    """
    if all(name.startswith("#") for name in widths):
        if len(widths) != len(usual):
            names = ", ".join(f"{group.name} ({group.units})" for group in usual)
            raise FusionError(f"--widths: {len(widths)} numbers for {len(usual)} groups: {names}")
        widths = {group.name: width for group, width in zip(usual, widths.values(), strict=True)}
    units = {group.name: group.units for group in every}
    for name, width in widths.items():
        if name not in units:
            raise FusionError(f"--widths: no group '{name}'{did_you_mean(name, units)}")
        if not 1 <= width <= whole[name]:
            raise FusionError(f"--widths: {name} has {whole[name]} units; keep 1 to {whole[name]} (got {width})")
    # exact reduction may have left fewer than were asked for
    return {name: min(width, units[name]) for name, width in widths.items()}


def calibration(source: Source, request: Request, macs: int) -> Tensor:
    """Training images in a random order, as many as a look at them may cost; no labels."""
    train = source.plan.splits.train
    fitting = max(LEAST_CALIBRATION, int(CALIBRATION_WORK / max(macs, 1)))
    count = min(request.images or min(CALIBRATION, fitting), len(train))
    chosen = permutation(len(train), derive_seed(request.seed, "calibration"))[:count]
    return normalise(train.images[chosen], train)


def fuse_to(bench: Workbench, request: Request, widths: Widths) -> tuple[Fused, str]:
    """The network at these widths, and what of it was refitted."""
    method = Method(request.select, request.combine, request.options)
    fused = fuse(bench.model, bench.groups, widths, method, bench.images, request.seed)
    if not (request.wants_refit() and fused.kept):
        return fused, "none"
    macs = sum(layer_macs(fused.model, bench.images.shape[1:]).values())
    return fused, refit_(fused.model, bench.model, bench.images, macs)


def distil_(model: nn.Module, source: Source, request: Request, should_stop: Stop) -> int:
    """Train towards the source's answers for the time asked; returns the steps, which repeat the result anywhere."""
    train, text = source.plan.splits.train, str(request.distil)
    seconds = seconds_of(text)
    if seconds is None:
        steps = parse_duration(text).steps(-(-len(train) // BATCH))
    else:
        steps = steps_in(seconds, model, source.model, train)
    for _ in distil_steps(model, source.model, train, steps, request.seed):
        if should_stop():
            raise Interrupted(STOPPED)
    return steps


# --- how many


def choose_widths(
    bench: Workbench, request: Request, curves: Mapping[str, Tensor], should_stop: Stop = lambda: False
) -> Iterator[str | Widths]:
    """Widths as asked; yields what was tried as text, and at the end the widths.

    Raises Interrupted when asked to stop.
    """
    if bench.asked is not None:
        yield bench.asked
    elif request.share is not None:
        yield _rounded(uniform(bench.groups, request.share), bench.groups, request.round_to)
    elif request.params is not None:
        yield _spend(bench, request, curves, bench.costs.parameters, request.params)
    elif request.macs is not None:
        yield _spend(bench, request, curves, bench.costs.macs, request.macs)
    elif request.latency is not None:
        yield from _fast_enough(bench, request, curves, request.latency)
    else:
        yield from _good_enough(bench, request, curves, should_stop)


def _rounded(widths: Widths, groups: Sequence[Group], to: int) -> Widths:
    units = {group.name: group.units for group in groups}
    return {name: min(units[name], max(to, round(width / to) * to)) for name, width in widths.items()}


def _spend(
    bench: Workbench, request: Request, curves: Mapping[str, Tensor], cost: Callable[[Widths], float], budget: float
) -> Widths:
    """Widths whose cost is within a budget."""
    if request.uses_curves():
        return within(bench.groups, curves, cost, budget, request.round_to)
    shares = [step / 1000 for step in range(1, 1001)]
    fitting = [
        widths
        for share in shares
        if cost(widths := _rounded(uniform(bench.groups, share), bench.groups, request.round_to)) <= budget
    ]
    if not fitting:
        raise FusionError("the budget is below the narrowest network's cost")
    return fitting[-1]


def _fast_enough(
    bench: Workbench, request: Request, curves: Mapping[str, Tensor], limit: float
) -> Iterator[str | Widths]:
    """The largest network that answers one image within a time."""
    image = bench.images[:1]

    def fits(widths: Widths) -> tuple[bool, str]:
        slim = deepcopy(bench.model)
        for group in bench.groups:
            keep_units_(slim, group, torch.arange(widths[group.name]))
        micros = latencies({"slim": slim}, image)["slim"]
        return micros <= limit, f"{micros:.1f} µs"

    yield from _search(bench, request, curves, fits, largest=True)


def _good_enough(
    bench: Workbench, request: Request, curves: Mapping[str, Tensor], should_stop: Stop
) -> Iterator[str | Widths]:
    """The smallest network that loses at most some points of validation accuracy; distilled first, if that is asked."""
    points = POINTS if request.keep_accuracy is None else request.keep_accuracy
    validation = bench.source.plan.splits.validation
    before = evaluate(bench.model, validation)[1]
    bench.model.eval()

    def fits(widths: Widths) -> tuple[bool, str]:
        if should_stop():
            raise Interrupted(STOPPED)
        model = fuse_to(bench, request, widths)[0].model
        if request.distil is not None:
            distil_(model, bench.source, request, should_stop)
        accuracy = evaluate(model, validation)[1]
        lost = f"validation {100 * accuracy:.2f} % ({100 * (accuracy - before):+.2f})"
        return accuracy >= before - points / 100, lost

    yield from _search(bench, request, curves, fits, largest=False)


def _search(
    bench: Workbench,
    request: Request,
    curves: Mapping[str, Tensor],
    fits: Callable[[Widths], tuple[bool, str]],
    largest: bool,
) -> Iterator[str | Widths]:
    """Halve the range of parameter budgets, on a logarithmic scale, until the answer is narrow enough."""
    whole = {group.name: group.units for group in bench.groups}
    least = {group.name: min(request.round_to, group.units) for group in bench.groups}
    if largest:
        fit, told = fits(whole)
        yield f"the whole network: {told}"
        if fit:
            yield whole
            return
    low, high = bench.costs.parameters(least), bench.costs.parameters(whole)
    best, found = whole, False
    for _ in range(TRIES):
        budget = (low * high) ** 0.5
        widths = _spend(bench, request, curves, bench.costs.parameters, budget)
        fit, told = fits(widths)
        yield f"{bench.costs.parameters(widths):,.0f} parameters, widths {_short(widths)}: {told}"
        if fit:
            best, found = widths, True
        # a good network may be smaller, a fast one larger
        if fit != largest:
            high = budget
        else:
            low = budget
    if largest and not found:
        raise FusionError("--latency: even the narrowest network tried here takes longer")
    yield best


def _short(widths: Widths) -> str:
    shown = list(widths.values())
    return "-".join(map(str, shown)) if len(shown) <= 12 else f"{shown[0]}-…-{shown[-1]} ({len(shown)} groups)"
