import pytest

from ticketlab.errors import RecipeError
from ticketlab.recipe import recipe_hash
from ticketlab.recipe_file import read_recipe, recipe_yaml

PINNED = "model: {name: lenet_300_100}\ndata: {name: mnist}\ntrain: {steps: 4000it}\n"


def test_hashes_never_change_for_old_recipes(write_recipe):
    """A new field must leave these alone, or finished runs are not found again."""
    path = write_recipe(PINNED)
    changed = ["method=oneshot", "train.lr=0.1", "data.augment=true", "pruning.rate=0.5"]
    assert recipe_hash(read_recipe(path).recipe) == "9642ed"
    assert recipe_hash(read_recipe(path, changed).recipe) == "767ba5"
    assert recipe_hash(read_recipe(path).recipe, {"a.py": "00"}) == "33321c"


def test_a_run_can_be_extended_without_changing_its_hash(write_recipe):
    path = write_recipe(PINNED)
    longer = ["pruning.levels=20", "replicates=7", "data.offline=digits"]
    assert recipe_hash(read_recipe(path, longer).recipe) == "9642ed"


def test_what_only_a_federation_looks_at_makes_no_other_run(write_recipe):
    path = write_recipe(PINNED)
    of_federations = ["federate.rule=personal", "federate.rounds=9", "federate.options={rate: 0.1}", "federate.seed=3"]
    assert recipe_hash(read_recipe(path, of_federations).recipe) == "9642ed"
    assert recipe_hash(read_recipe(path, ["data.examples=null"]).recipe) == "9642ed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["error_feedback=true"], "error_feedback belongs to precision: float16"),
        (
            ["aggregate=median", "server_momentum=0.5"],
            "server_lr, server_momentum and privacy belong to aggregate: mean",
        ),
        (["aggregate=median", "privacy={}"], "belong to aggregate: mean"),
        (["server_lr=0.5", "privacy={}"], "privacy is accounted for the plain mean"),
        (["privacy={kind: local, epsilon: 2.0}"], "less than or equal to 1"),
        (["privacy={noise: 0.0}"], "greater than 0"),
        (["rond=3"], "did you mean 'rounds'"),
    ],
)
def test_settings_of_a_federation_that_would_be_ignored_are_refused(write_recipe, settings, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(write_recipe(PINNED), [f"federate.{each}" for each in settings])


def test_every_other_field_changes_the_hash(write_recipe):
    path = write_recipe(PINNED)
    changes = [
        "seed=1", "train.steps=4001it", "train.batch_size=61", "train.lr=1e-3", "train.optimizer=adamw",
        "train.weight_decay=1e-4", "train.precision=bf16",
        "train.channels_last=true", "train.warmup=1it", "train.milestones=[1ep]", "train.evaluate_every=50it",
        "data.name=digits", "data.validation=1", "data.examples=100", "data.split_seed=1", "data.augment=true",
        "model.name=lenet_5",
        "model.options={a: 1}", "pruning.criterion=random", "pruning.scope=global", "pruning.rate=0.3",
        "pruning.output_rate=0.1", "pruning.rates={conv*: 0.1}", "pruning.ignore=[fc1]", "pruning.rewind=1it",
        "pruning.after=reinit", "method=oneshot", "ticket=run-123abc@1", "ticket=run-123abc@2",
    ]  # fmt: skip
    hashes = {recipe_hash(read_recipe(path, [change]).recipe) for change in changes}
    assert len(hashes | {"9642ed"}) == len(changes) + 1


def test_a_resolved_recipe_reads_back_equal(write_recipe):
    recipe = read_recipe(write_recipe(PINNED), ["train.milestones=[80ep, 120ep]", "train.lr=1e-3"]).recipe
    for in_short in (False, True):
        assert read_recipe(write_recipe(recipe_yaml(recipe, in_short), "again.yaml")).recipe == recipe
    assert "momentum" not in recipe_yaml(recipe, in_short=True) and "momentum" in recipe_yaml(recipe)
