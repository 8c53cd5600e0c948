"""What a recipe may say: every field, its type, its default. Knows no files and no tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from ticketlab.steps import PATTERN, Duration, parse_duration

Time = Annotated[
    Duration,
    BeforeValidator(parse_duration),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Density = Annotated[float, Field(gt=0, lt=1)]
Options = dict[str, Any]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are typed strictly, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """The network: a built-in one by name, or a function `name` in the user's own `file`."""

    name: str
    """Built-in model, or the function in `file` that builds one."""
    file: str | None = None
    """Python file of one's own, relative to the recipe."""
    options: Options = Field(default_factory=dict)
    """Keyword options of the builder."""


class DataSection(Section):
    """The data set and how it is split and augmented."""

    name: str
    """Data set by name."""
    offline: str | None = None
    """Data set to use instead where this one is absent and cannot be downloaded."""
    validation: Annotated[int, Field(ge=1)] = 5000
    """Training examples set aside to choose the early-stop step."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the training/validation split; the same for every replicate."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Training examples used, drawn by `split_seed`; left out, all. Clients of `ticketlab federate` get the others."""
    augment: bool = False
    """Random crop from a 4-pixel zero border and random horizontal flip of training images."""


class SparsifySection(Section):
    """What draws weights to zero while level 0 trains (methods imp, oneshot, early_bird); later levels do without."""

    kind: Literal[
        "l1",
        "hoyer_square",
        "group_lasso",
        "l0",
        "variational_dropout",
        "targeted_dropout",
        "global_sparse_momentum",
    ]
    """A penalty on prunable weights: l1, hoyer_square (of each layer), group_lasso (of each unit or filter); gates on
    them: l0 (hard concrete), variational_dropout; or targeted_dropout, or global_sparse_momentum (docs/methods.md)."""
    strength: Annotated[float, Field(gt=0)] = 1e-4
    """Of a penalty, on weights or on open gates: its gradient is added so many times."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """targeted_dropout: the smaller weights of each unit that may be dropped; global_sparse_momentum: of all weights,
    those that learn in a step."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """targeted_dropout: with which each of them is; l0: p of log α = log((1 − p) / p) at the start, where gates let
    about 1 − p of their weights through."""
    gate_lr: Annotated[float, Field(gt=0)] = 1e-2
    """l0, variational_dropout: learning rate of the gates, which have an Adam of their own."""

    @property
    def is_gated(self) -> bool:
        """Whether there are gates on weights, trained with them."""
        return self.kind in ("l0", "variational_dropout")

    def model_post_init(self, _: Any, /) -> None:
        """Refuse what the kind would ignore."""
        uses = {
            "targeted_dropout": {"share", "probability"},
            "global_sparse_momentum": {"share"},
            "l0": {"strength", "probability", "gate_lr"},
            "variational_dropout": {"strength", "gate_lr"},
        }.get(self.kind, {"strength"})
        for name in sorted({"strength", "share", "probability", "gate_lr"} - uses):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError("sparsify", f"{name} does not belong to kind: {self.kind}")
        if self.kind == "l0" and self.probability == 1:
            raise PydanticCustomError(
                "sparsify", "probability must be below 1: gates that let nothing through never open"
            )


class TrainSection(Section):
    """How each level is trained."""

    steps: Time
    """Length of training at level 0; later levels end at the same step."""
    batch_size: Annotated[int, Field(ge=1)] = 60
    """Examples in one optimizer step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimizer; its state starts empty at every level."""
    lr: Annotated[float, Field(gt=0)] = 1.2e-3
    """Learning rate."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    warmup: Time = Duration(0, "it")
    """Linear warm-up of the learning rate from 0."""
    milestones: Annotated[tuple[Time, ...], Field(strict=False)] = ()
    """Times at which the learning rate is multiplied by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor at each milestone."""
    evaluate_every: Time = Duration(100, "it")
    """Grid on which validation loss is read; the early-stop step is its minimum."""
    gradient_noise: Annotated[float, Field(ge=0)] = 0.0
    """λ of Gaussian noise on every gradient of a deviation of λ · ‖gradient‖ / √(weights of the tensor) (FlipOut)."""
    slimming: Annotated[float, Field(ge=0)] = 0.0
    """L1 penalty on batch-norm scales (network slimming): s · sign(γ) is added to their gradients."""
    sparsify: SparsifySection | None = None
    """What draws weights to zero while level 0 trains."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: forward passes of training in bfloat16 over float32 weights; about twice as fast for convolutions on
    processors with bfloat16 units, slower on others. Accuracies are always measured in float32."""
    channels_last: bool = False
    """Images and activations of training laid out pixel by pixel, which convolutions compute faster."""

    def model_post_init(self, _: Any, /) -> None:
        """Refuse settings that the chosen optimizer would ignore."""
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise PydanticCustomError("sgd_only", "momentum and nesterov belong to optimizer: sgd")
        if self.nesterov and not self.momentum:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0")
        if self.evaluate_every.count == 0:
            raise PydanticCustomError("grid", "evaluate_every must be at least 1it")


class PruningSection(Section):
    """Which weights go, how many, and where the rest restart."""

    criterion: str = "magnitude"
    """Saliency of a weight; the lowest are removed."""
    options: Options = Field(default_factory=dict)
    """Keyword options of the criterion."""
    scope: Literal["layer", "global"] = "layer"
    """Where weights compete: inside their layer, or all layers together."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the remaining weights removed per level."""
    output_rate: Fraction | None = None
    """Rate of the last layer alone; left out, it is treated like the others."""
    rates: dict[str, Fraction] = Field(default_factory=dict)
    """Rates of layers by name pattern, such as `conv*: 0.1`; the first match counts."""
    ignore: Names = ()
    """Name patterns of layers that are never pruned."""
    levels: Annotated[int, Field(ge=0, le=1000)] = 10
    """Prune–rewind–train rounds after the dense level 0, which 0 trains alone; can be extended later."""
    densities: Annotated[tuple[Density, ...], Field(strict=False)] = ()
    """Fraction of weights that level 1, 2, … keeps, instead of `rate` and `levels`. sign_flip and gradual: one, which
    the last of `levels` prunings reaches."""
    compensate: bool = False
    """The remaining weights of each layer make up for those removed, so that its outputs for `examples` change least
    (optimal brain surgeon); methods imp and oneshot with after: lr_rewind or finetune."""
    allocation: Literal["rate", "er", "erk"] = "rate"
    """How many weights each layer keeps where scope is layer: the same share, or more of small layers (Erdős–Rényi):
    as (inputs + units) / (inputs · units); erk counts the sides of kernels with them (Evci et al. 2020)."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """method: at_init or dynamic. Prunings on the way to a level's density, each by the same share of what remains; the
    criterion looks anew before each (synflow: 100)."""
    examples: Annotated[int, Field(ge=1)] = 1000
    """Training examples that criteria with gradients look at, drawn by the replicate's seed."""
    rewind: Time = Duration(0, "it")
    """Step of level 0 whose weights a ticket restarts from."""
    after: Literal["rewind", "lr_rewind", "finetune", "reinit", "continue"] = "rewind"
    """Restart: rewound weights and schedule; trained weights with the schedule rewound; trained weights at
    the last learning rate; fresh random weights; or (early_bird) weights and schedule where the draw found them."""
    reclaim: Literal["dead_paths"] | None = None
    """dead_paths: weights that lie on no path from input to output give their places to the next best that do."""


class ScheduleSection(Section):
    """method: sign_flip or gradual. When a network in training is pruned: `pruning.levels` times, one level each."""

    first: Time | None = None
    """Time of the first pruning; left out, an interval after the start of training."""
    every: Time | None = None
    """Time between prunings; left out, they are spread evenly until `until`."""
    until: Time | None = None
    """Time of the last pruning, or up to so many steps before as there are prunings, which stand whole steps apart;
    left out, an interval before the end of training."""
    shape: Literal["constant", "cubic"] = "constant"
    """constant: the rate of what remains goes each time (FlipOut's halvings); cubic: as many in all, most of them
    early (Zhu & Gupta 2017, equation 1)."""


class DynamicSection(Section):
    """method: dynamic. Weights that are replaced by others while a level trains; as many remain all the time."""

    grow: Literal["gradient", "random", "momentum"] = "gradient"
    """Which come: those of the largest gradient (RigL), any (SET), or those of the largest mean gradient over time,
    which also decides how many come to each layer (sparse momentum)."""
    drop: Literal["magnitude", "sign"] = "magnitude"
    """Which go: a `fraction` of each layer, the smallest; or all that have left the sign they had (deep rewiring;
    it looks after every step, every: 1it)."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of a layer's remaining weights that goes the first time."""
    decay: Literal["cosine", "constant"] = "cosine"
    """How the share goes on: down to none at `until`, or as it is."""
    every: Time = Duration(100, "it")
    """Time between replacements."""
    until: Time | None = None
    """Time after which the mask stays as it is; left out, three quarters of the training."""
    momentum: Fraction = 0.9
    """grow: momentum. What the mean gradient keeps of itself at every step."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """drop: sign. Pull of remaining weights to zero: so many times their sign is added to their gradients."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """drop: sign, optimizer: sgd. T of the noise √(2 η T) ν on remaining weights in each step, η the learning rate."""


class SignFlipsSection(Section):
    """How sign flips are counted, where the criterion or `watch` asks for them."""

    half_life: Time | None = None
    """Time after which a flip counts half; left out, nothing is forgotten."""
    reset: bool = False
    """Count anew after each pruning (methods sign_flip and gradual; the others count anew at every level anyway)."""
    at_once: Annotated[int, Field(ge=1)] | None = None
    """method: sign_flip. Remove a weight the moment it has flipped so often since the first pruning time, until the
    level's density is reached; what is missing at the middle of a level goes by the criterion."""


class EarlyBirdSection(Section):
    """method: early_bird. When tickets are drawn from a network that is still training, and which."""

    granularity: Literal["weights", "channels"] = "weights"
    """What a mask keeps or removes: single weights by the criterion, or channels by their batch-norm scale."""
    densities: Annotated[tuple[Density, ...], Field(strict=False, min_length=1)] = (0.5,)
    """Fraction of weights (or channels) that each ticket keeps; all are looked for in one training."""
    every: Time | None = None
    """Time between two masks; left out, a fortieth of the training."""
    window: Annotated[int, Field(ge=2)] = 5
    """Masks that are compared with each other, the newest among them."""
    distance: Literal["chance", "hamming"] = "chance"
    """Unit of mask distances: of what chance would give, or (the paper) of all positions."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """A ticket is drawn when the newest mask is closer than this to all others of the window. In units of chance it
    is meant for a window over a tenth of the training, and grows with the root of that span. Left out: what was
    calibrated for the criterion and granularity (docs/early-bird.md), or the paper's 0.1 for distance hamming."""
    patience: Time | None = None
    """Time at which a ticket is drawn though its mask still moves; left out, the end of training."""
    also_at: Annotated[tuple[Time, ...], Field(strict=False)] = ()
    """Times at which tickets are drawn as well, to compare with; the end of training is one-shot pruning."""


class PrivacySection(Section):
    """Differential privacy of clients in a federation: their updates are clipped, and noise is added."""

    kind: Literal["central", "central_client", "local"] = "central"
    """Who clips and who adds noise: the server does both; the client clips and the server adds noise; the client does
    both, which alone protects it from the server."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of an update: of all surviving values together."""
    noise: Annotated[float, Field(gt=0)] = 1.0
    """central, central_client: noise multiplier; the noise of the mean has a deviation of noise · clip / clients."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1.0
    """local: ε of one update, 1 at most, beyond which the formula is not proven; the noise of each value has a
    deviation of 2 · clip · √(2 ln(1.25/δ)) / ε."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ: the probability with which the protection may fail."""


SECURE_CLIENTS = 3
"""Fewest clients of a secure sum: of two, each knows the other's part of it."""
FEW_CLIENTS = 5
"""Most clients among whom central privacy is not worth its noise: the mean nearly is each one's own answer."""


class FederateSection(Section):
    """ticketlab federate: how clients train together."""

    rule: str = "fixed"
    """What is sent and how answers become one network: fixed, early_bird, personal, feddst, prunefl, sign_flip or
    submodels (docs/federate.md)."""
    options: Options = Field(default_factory=dict)
    """Keyword options of the rule."""
    start: Literal["trained", "rewound", "reinit"] | None = None
    """Weights at the start: as the level was trained; as it was rewound; fresh ones. Left out: trained, or rewound for
    rules that begin with a dense network."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds; can be extended later."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes of each client over its own examples in a round."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the clients' sgd."""
    momentum: Fraction = 0.0
    """Momentum of the clients' sgd, anew in every round."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples in a client's step."""
    partition: str = "iid"
    """How one data set is split over the clients: iid, dirichlet, shards or group (one person or hospital each)."""
    partition_options: Options = Field(default_factory=dict)
    """Keyword options of the partition."""
    holdout: Fraction = 0.1
    """Share of its examples that a client does not train on: by one half it decides (rule personal), the other half
    gives the accuracy shown. Where people or hospitals have test examples of their own, these give it."""
    examples_per_client: Annotated[int, Field(ge=1)] | None = None
    """Examples that a client uses at most, the first of its part in a drawn order; left out, all."""
    clients_per_round: Annotated[int, Field(ge=1)] | None = None
    """Clients drawn for each round; left out, all."""
    precision: Literal["float32", "float16"] = "float32"
    """How values travel; float32 is exact."""
    error_feedback: bool = False
    """A client adds what float16 cut off its last answer to the next one (Seide et al. 2014)."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """μ of FedProx: clients add μ · (weights − the server's) to their gradients (Li et al. 2020, equation 2)."""
    aggregate: Literal["mean", "median", "trimmed_mean"] = "mean"
    """Flower's FedAvg, FedMedian or FedTrimmedAvg (a fifth cut off at each end); fixed masks only."""
    server_lr: Annotated[float, Field(gt=0)] = 1.0
    """The server's step along the clients' mean update (FedAvgM); fixed masks only."""
    server_momentum: Fraction = 0.0
    """Momentum of the server's step (FedAvgM, Hsu et al. 2019); fixed masks only."""
    privacy: PrivacySection | None = None
    """Differential privacy; fixed masks only."""
    secure: bool = False
    """Flower's SecAgg+: the server learns the weighted mean of the clients' networks and no single one. For rule fixed
    with aggregate: mean, and three clients or more (docs/federate-secure.md)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the partition, of the clients drawn and of their batches."""

    def model_post_init(self, _: Any, /) -> None:
        """Refuse what would be ignored."""
        if self.error_feedback and self.precision == "float32":
            raise PydanticCustomError("lossless", "error_feedback belongs to precision: float16; float32 loses nothing")
        if self.aggregate != "mean" and (self.server_momentum or self.server_lr != 1 or self.privacy):
            raise PydanticCustomError("mean_only", "server_lr, server_momentum and privacy belong to aggregate: mean")
        if self.privacy and (self.server_momentum or self.server_lr != 1):
            raise PydanticCustomError("plain_mean", "privacy is accounted for the plain mean: leave server_* out")
        if self.secure:
            self._refuse_what_needs_single_answers()

    def _refuse_what_needs_single_answers(self) -> None:
        wrong = {
            f"rule: {self.rule}": self.rule != "fixed",
            f"aggregate: {self.aggregate}": self.aggregate != "mean",
            f"privacy.kind: {self.privacy and self.privacy.kind}": self.privacy and self.privacy.kind != "local",
        }
        for told, is_set in wrong.items():
            if is_set:
                raise PydanticCustomError("sum_only", f"secure: the server sees a sum alone, which is not for {told}")
        if self.precision != "float32":
            raise PydanticCustomError("integers", "secure: values travel as SecAgg+'s integers; leave precision out")


class Where(Section):
    """A level of a run."""

    density: Density | None = None
    """Fraction of weights that remain there, to within 2 %."""
    level: Annotated[int, Field(ge=0)] | None = None
    """The level itself."""

    def model_post_init(self, _: Any, /) -> None:
        """Refuse both and neither."""
        if (self.density is None) == (self.level is None):
            raise PydanticCustomError("one_place", "say density or level, one of them")


class ClaimSection(Section):
    """What a paper says, or we do, that `ticketlab verify` measures."""

    claim: str
    """In words."""
    source: str
    """Where it is said: paper, section, figure."""
    that: str
    """What is measured with each seed: an expression of names, numbers and + - * /. Names are ticket, dense, a control
    (reinit, shuffled_mask, …), a supermask (supermask.magnitude.init) and those of `others` (docs/verify.md)."""
    metric: Literal["test_accuracy", "final_test_accuracy", "val_accuracy", "early_stop_step", "density", "barrier"] = (
        "test_accuracy"
    )
    """Of each of them; accuracies are fractions of 1, at the early-stop step unless they are final. barrier: the error
    barrier between two copies that begin at the run's rewind step, on validation examples (docs/stability.md)."""
    at: Where
    """At which level of the run."""
    at_least: float | None = None
    """The mean is no smaller."""
    at_most: float | None = None
    """The mean is no larger."""
    expected: float | None = None
    """The mean is this, to within `tolerance`."""
    tolerance: Annotated[float, Field(ge=0)] | None = None
    """Largest distance from `expected`."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Seeds without which nothing is decided."""
    others: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(default_factory=dict)
    """Tickets of the same recipe with some fields changed, such as `finetune: [pruning.after=finetune]`."""

    def model_post_init(self, _: Any, /) -> None:
        """Refuse a claim that says nothing, or two things."""
        if (self.expected is None) != (self.tolerance is None):
            raise PydanticCustomError("claim_pair", "expected and tolerance belong together")
        is_bounded = self.at_least is not None or self.at_most is not None
        if is_bounded == (self.expected is not None):
            raise PydanticCustomError("claim_bound", "say at_least, at_most, or expected with tolerance")
        bounds = [bound for bound in (self.at_least, self.at_most, self.expected) if bound is not None]
        if self.metric.endswith("accuracy") and "/" not in self.that and any(abs(bound) > 1 for bound in bounds):
            raise PydanticCustomError("claim_share", "accuracies are fractions of 1: write 0.95 for 95 %")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise PydanticCustomError("claim_order", "at_least is larger than at_most; no mean is both")


class Recipe(Section):
    """One experiment."""

    method: Literal["imp", "oneshot", "at_init", "dynamic", "early_bird", "sign_flip", "gradual", "transfer"] = "imp"
    """imp: iterative pruning, level by level; oneshot: every level prunes the dense network at once; at_init: every
    level prunes the network as it is at the rewind step, before it is trained; dynamic: the same, and weights are
    replaced while it trains; early_bird: tickets are drawn while the
    dense network trains, as soon as their masks stop moving; sign_flip: one training, in which weights go that change
    sign often; gradual: the same by any other criterion; transfer: the ticket of another run, trained as this recipe
    says."""
    ticket: str | None = None
    """method: transfer. The ticket, as RUN@level; RUN is a run's name, its path or a unique prefix."""
    model: ModelSection
    data: DataSection
    train: TrainSection
    pruning: PruningSection = PruningSection()
    early_bird: EarlyBirdSection = EarlyBirdSection()
    schedule: ScheduleSection = ScheduleSection()
    dynamic: DynamicSection = DynamicSection()
    sign_flips: SignFlipsSection = SignFlipsSection()
    federate: FederateSection = FederateSection()
    watch: Annotated[tuple[Literal["sign_flips"], ...], Field(strict=False)] = ()
    """What is recorded beside the curves: sign_flips counts how often each weight changes sign."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """Repetitions with seeds `seed`, `seed + 1`, …; more can be added later."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first replicate: initial weights, order of data, augmentation."""
    variants: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(default_factory=dict)
    """Recipes that differ in some fields, by name: `rigl: [method=dynamic, pruning.criterion=random]`; ticketlab prune
    runs all of them, or some with --set variant=rigl,set. Lists of values make several runs, as in --set."""
    variant: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """Which of the variants this recipe is."""
    plugins: Names = ()
    """Python files of one's own that register criteria, models or data sets."""
    claims: Annotated[tuple[ClaimSection, ...], Field(strict=False)] = ()
    """What `ticketlab verify` measures."""

    @property
    def levels(self) -> int:
        """Levels after level 0 that the pruning section asks for."""
        return self.pruning.levels if self.prunes_in_training else len(self.pruning.densities) or self.pruning.levels

    @property
    def prunes_at_init(self) -> bool:
        """Whether levels are pruned before they are trained, without the dense network's training."""
        return self.method in ("at_init", "dynamic")

    @property
    def prunes_in_training(self) -> bool:
        """Whether one training goes through all levels."""
        return self.method in ("sign_flip", "gradual")

    def with_data(self, name: str, validation: int, examples: int | None = None) -> Self:
        """The same recipe on another data set."""
        changed = {"name": name, "validation": validation, "examples": examples, "offline": None}
        data = self.data.model_copy(update=changed)
        return self.model_copy(update={"data": data})


def recipe_hash(recipe: Recipe, files: dict[str, str] | None = None) -> str:
    """Short hash of what decides a run's results: every field that differs from its default.

    Replicates are left out, because a finished run can be extended by them, and so are levels where no schedule
    depends on their number; so is the stand-in data set, which is not used once the real one is found, and what only
    a federation or `verify` looks at. Fields added later change no hash while they are at their default.

    Args:
        files: SHA-256 of each file of the user's own that the recipe names.
    """
    fields = recipe.model_dump(mode="json", exclude_defaults=True)
    if not recipe.prunes_in_training:
        fields.get("pruning", {}).pop("levels", None)
    fields["data"].pop("offline", None)
    fields.pop("replicates", None)
    fields.pop("federate", None)
    fields.pop("claims", None)
    fields.pop("variants", None)
    fields.pop("variant", None)
    if not fields.get("pruning", True):
        del fields["pruning"]
    canonical = json.dumps({"recipe": fields, "files": files or {}}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:6]


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names: `{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def not_common(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the fields that are not the same in all."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
