from dataclasses import replace

import pytest
import torch
from support import FOLDER, RECIPES

from ticketlab.data.dataset import Dataset
from ticketlab.data.sources import FILE_SETS
from ticketlab.errors import RecipeError
from ticketlab.recipe_file import read_recipe, read_variants
from ticketlab.workflows.check import check_all
from ticketlab.workflows.estimate import forecast
from ticketlab.workflows.inputs import Data, check_recipe, load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.run import Machine
from ticketlab.workflows.sweep_points import points_of

OWN_MODEL = """
from torch import nn

def build(inputs, classes, *, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs[1] * inputs[2], width), nn.Tanh(), nn.Linear(width, classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def wrong_classes(inputs, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def raises(inputs, classes):
    return 1 / 0

def no_module(inputs, classes):
    return 5

def nothing_to_prune(inputs, classes):
    return nn.Flatten(1)

def with_default(input_shape, classes, width=8):
    return build(input_shape, classes, width=width)
"""


def blank(name: str) -> Data:
    """A data set of the right shapes and counts with nothing in it: enough to plan."""
    known = {"cifar10": ((3, 32, 32), 50000), "hapt": ((6, 1, 128), 7435), "heart": ((18, 1, 1), 735)}
    shape, count = known.get(name, ((1, 28, 28), 60000))
    images = torch.zeros(1, *shape, dtype=torch.uint8).expand(count, -1, -1, -1)
    labels = torch.zeros(count, dtype=torch.int64)
    mean = (0.5,) * shape[0]
    return Data(Dataset(name, images, labels, images[:10], labels[:10], mean, mean, 10, "nowhere"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_becomes_a_plan(path):
    for point in points_of((), read_variants(path)):
        _check(read_recipe(path, point.overrides))


def _check(file):
    assert file.recipe.data.name in FILE_SETS
    plan = make_plan(file, blank(file.recipe.data.name))
    if file.recipe.method == "transfer":
        assert plan.levels == 1  # how many weights is for the source to say
        return
    counts = [sum(plan.keeps(level)) for level in range(plan.levels + 1)]
    assert counts[0] == sum(plan.judged.values())
    count = len(file.recipe.early_bird.densities) if plan.early_bird else max(plan.levels, 1)
    assert all(counts[1 + n * count :][:count] == counts[1 : 1 + count] for n in range(plan.levels // count))
    ladder = counts[: 1 + count]
    assert ladder == sorted(ladder, reverse=True) and len(set(ladder)) == len(ladder)


def plan_of(file, places):
    return make_plan(*load_data(file, places))


def test_the_lenet_recipe_is_the_papers_ladder():
    plan = make_plan(read_recipe(FOLDER / "lenet_mnist.yaml"), blank("mnist"))
    densities = [round(100 * sum(plan.keeps(level)) / 266_200, 2) for level in range(8)]
    assert densities == [100.0, 80.04, 64.06, 51.28, 41.05, 32.87, 26.32, 21.07]
    assert (plan.steps, plan.steps_per_epoch) == (4000, 917)
    assert [level.macs for level in forecast(plan).levels[:1]] == [235_200 + 30_000 + 1_000]
    expected = forecast(plan)
    assert expected.levels[7].macs == pytest.approx(plan.keeps(7)[0] + plan.keeps(7)[1] + plan.keeps(7)[2])
    assert expected.seconds > 0 and expected.replicates == 2


def test_all_names_are_checked_at_once_and_suggested(tiny, places):
    file = tiny(
        "model.name=lenet_300_10", "data.name=digit", "pruning.criterion=magnitud", "pruning.options={p: 1}",
        "plugins=[none.py]",
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        make_plan(file, blank("mnist"))
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[2] for line in lines[1:]] == [
        "pruning.criterion: unknown criterion 'magnitud'; did you mean 'magnitude'?",
        "model.name: unknown model 'lenet_300_10'; did you mean 'lenet_300_100'?",
        "data.name: unknown data set 'digit'; did you mean 'digits'?",
    ]
    assert "--set plugins=[none.py]: plugins.0:" in lines[0] and "cannot be read" in lines[0]


def test_of_an_unknown_criterion_nothing_else_is_said(tiny, places):
    with pytest.raises(RecipeError) as error:
        check_recipe(tiny("pruning={criterion: snipp, examples: 70}"))
    assert "did you mean 'snip'" in str(error.value) and "looks at no examples" not in str(error.value)


def test_options_that_do_not_fit_a_signature_are_named(tiny, places):
    with pytest.raises(RecipeError, match=r"pruning\.options\.p: unknown option 'p'; it takes none"):
        plan_of(tiny("pruning.options={p: 2}"), places)
    with pytest.raises(
        RecipeError, match=r"model\.options\.batchnorm: unknown option 'batchnorm'; did you mean 'batch_norm'"
    ):
        plan_of(tiny("model={name: lenet_5, options: {batchnorm: true}}"), places)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "train.batch_size=5000",
            r"train\.batch_size: only 1237 training examples beside validation; 5000 is too many",
        ),
        ("pruning.rewind=30it", r"--set pruning\.rewind=30it: pruning\.rewind: step 30 is not before the end"),
        ("pruning.rewind=1ep", "step 39 is not before the end of training at step 30"),
        ("train.steps=0it", "training needs at least 1it"),
        ("data.validation=1437", "only 1437 training examples"),
        (
            "data.examples=1238",
            r"--set data\.examples=1238: .*: only 1237 training examples beside validation; 1238 is too many",
        ),
        ("data.examples=31", r"train\.batch_size: only 31 training examples"),
        ("pruning.rates={conv*: 0.1}", r"no layer is called 'conv\*'"),
        ("pruning.ignore=['*']", "nothing would ever be removed"),
        ("model.name=lenet_5", "the model cannot read 1×8×8 images"),
    ],
)
def test_what_does_not_fit_together_is_refused(tiny, places, setting, message):
    with pytest.raises(RecipeError, match=message):
        plan_of(tiny(setting), places)


def test_only_pictures_are_cropped_and_flipped(tiny):
    data = blank("mnist")
    heights = Data(replace(data.dataset, name="heights", per_unit=(100.0,)))
    assert make_plan(tiny("data.augment=true"), data)
    with pytest.raises(RecipeError, match=r"data\.augment: pictures are cropped and flipped; heights has none"):
        make_plan(tiny("data.augment=true"), heights)


def test_a_model_of_ones_own_is_built_with_its_options(tiny, places, tmp_path):
    (tmp_path / "my_net.py").write_text(OWN_MODEL)
    plan = plan_of(tiny("model={file: my_net.py, name: build, options: {width: 5}}"), places)
    assert plan.sizes == {"1.weight": 320, "3.weight": 50}
    assert plan_of(tiny("model={file: my_net.py, name: fixed}"), places).sizes == {"1.weight": 640}
    named = plan_of(tiny("model={file: my_net.py, name: with_default, options: {width: 6}}"), places)
    assert named.sizes == {"1.weight": 384, "3.weight": 60}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"my_net\.py:14: 'raises' cannot be built for 1×8×8 images: ZeroDivisionError"),
        ("wrong_classes", r"logits \(2, 10\), gave \(2, 3\)"),
        ("no_module", "returned int, not a torch nn.Module"),
        ("nothing_to_prune", r"should answer 2 images with logits"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_model_of_ones_own_that_does_not_work_is_explained(tiny, places, tmp_path, name, message):
    (tmp_path / "my_net.py").write_text(OWN_MODEL)
    with pytest.raises(RecipeError, match=message):
        plan_of(tiny(f"model={{file: my_net.py, name: {name}}}"), places)


def test_an_edited_model_file_is_another_run(tiny, places, tmp_path):
    (tmp_path / "my_net.py").write_text(OWN_MODEL)
    file = tiny("model={file: my_net.py, name: build}")
    before = plan_of(file, places).name
    (tmp_path / "my_net.py").write_text(OWN_MODEL.replace("Tanh", "ReLU"))
    assert plan_of(file, places).name != before


def test_initial_weights_depend_on_the_seed_alone(tiny, places):
    plan = plan_of(tiny(), places)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = plan.build(7).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(first[name], value) for name, value in plan.build(7).state_dict().items())
    assert not torch.equal(first["fc1.weight"], plan.build(8).state_dict()["fc1.weight"])


def test_a_stand_in_is_smaller_and_makes_another_run(tiny, places):
    file = tiny("data={name: mnist, offline: mnist_5k}", "model.name=lenet_300_100")
    used, data = load_data(file, places)
    assert (data.stand_in_for, used.recipe.data.name, used.recipe.data.validation) == ("mnist", "mnist_5k", 400)
    assert make_plan(used, data).hash != make_plan(file, blank("mnist")).hash


def test_a_recipe_is_checked_as_far_as_the_data_allows(tiny, places):
    machine = Machine(places=places)
    assert check_all(tiny(), machine) == []
    (note,) = check_all(tiny("data={name: mnist}"), machine)
    assert "ticketlab data fetch mnist" in note
    with pytest.raises(RecipeError):
        check_all(tiny("data={name: mnist}", "model.name=nothing"), machine)
    claim = "claims=[{claim: c, source: s, that: ticket - tiket, at: {level: 1}, at_least: 0}]"
    with pytest.raises(RecipeError, match="unknown name 'tiket'; did you mean 'ticket'"):
        check_all(tiny(claim), machine)


def test_a_plugin_is_loaded_before_its_names_are_looked_up(tiny, places, tmp_path):
    (tmp_path / "steady.py").write_text(
        "from ticketlab.pruning.criteria import criteria\n"
        "@criteria.register('test_only_signed')\n"
        "def signed(weight, evidence, *, factor=1.0):\n"
        "    return weight * factor\n"
    )
    plan = plan_of(
        tiny("plugins=[steady.py]", "pruning.criterion=test_only_signed", "pruning.options={factor: 2.0}"), places
    )
    assert plan.recipe.pruning.criterion == "test_only_signed"
    (tmp_path / "needy.py").write_text(
        "from ticketlab.pruning.criteria import criteria\n"
        "@criteria.register('test_only_needy', needs={'initail'})\n"
        "def needy(weight, evidence):\n"
        "    return weight\n"
    )
    with pytest.raises(
        RecipeError, match="'test_only_needy' needs 'initail', which no run records; did you mean 'init"
    ):
        plan_of(tiny("plugins=[needy.py]", "pruning.criterion=test_only_needy"), places)
    (tmp_path / "bad.py").write_text("import nothing_like_this\n")
    with pytest.raises(RecipeError, match=r"bad\.py:1: ModuleNotFoundError"):
        plan_of(tiny("plugins=[bad.py]"), places)
