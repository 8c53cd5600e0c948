import pytest

from ticketlab.errors import RecipeError
from ticketlab.recipe_file import read_recipe

MINIMAL = "model: {name: lenet_300_100}\ndata: {name: mnist}\ntrain:\n  steps: 10it\n"


def error_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return str(caught.value).replace(f"{path}:", "@").splitlines()


def test_all_mistakes_come_at_once_each_with_its_place(write_recipe):
    path = write_recipe(
        "method: impp\n"
        "model: {name: lenet_300_100}\n"
        "data: {name: mnist}\n"
        "train:\n"
        "  steps: 4000\n"
        "  lrr: 1e-3\n"
        "  lr: on\n"
        "pruning: {rate: 1.2, levels: -1, rewnd: 0it}\n"
    )
    found = error_of(path)
    known = "imp, oneshot, at_init, dynamic, early_bird, sign_flip, gradual, transfer"
    assert found[0] == f"@1:1: method: 'impp' is not one of {known}; did you mean 'imp'?"
    assert found[1].startswith("@5:3: train.steps: write a time as '12ep'")
    assert found[2].startswith("@7:3: train.lr: Input should be a valid number")
    assert found[3] == "@6:3: train.lrr: unknown key; did you mean 'lr'?"
    assert found[4:] == [
        "@8:11: pruning.rate: Input should be less than 1 (got 1.2)",
        "@8:22: pruning.levels: Input should be greater than or equal to 0 (got -1)",
        "@8:34: pruning.rewnd: unknown key; did you mean 'rewind'?",
    ]


def test_a_duplicate_key_is_an_error_where_it_stands(write_recipe):
    path = write_recipe(MINIMAL + "  lr: 1.0\n  lr: 2.0\n")
    assert error_of(path) == ["@6:3: train.lr: duplicate key; first at line 5"]


def test_a_missing_key_is_named_with_its_section(write_recipe):
    assert error_of(write_recipe("model: {name: a}\ndata: {}\ntrain: {steps: 1it}\n")) == [
        "@2:1: data.name: required key is missing"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("just text", "a recipe is a mapping"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        ("a: &x [*x]\n", "nested without end"),
        (
            "a: &a [1,1,1,1]\n"
            + "".join(f"{y}: &{y} [*{x},*{x},*{x},*{x}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
            "more than",
        ),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_one_clear_error(write_recipe, text, message):
    assert message in "\n".join(error_of(write_recipe(text)))


def test_a_binary_file_a_folder_and_a_missing_file_are_told_apart(tmp_path, write_recipe):
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(256)))
    assert "not a text file" in error_of(path)[0]
    assert "cannot be read" in error_of(tmp_path)[0]
    write_recipe(MINIMAL, "lenet.yaml")
    assert error_of(tmp_path / "lenett.yaml")[0].endswith("lenet.yaml'?")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [("1e-3", 0.001), ("1e3", 1000.0), (".5", 0.5), ("5", 5.0), ("+1.5E+1", 15.0)],
)
def test_numbers_are_read_as_yaml_1_2_writes_them(write_recipe, scalar, value):
    assert read_recipe(write_recipe(MINIMAL + f"  lr: {scalar}\n")).recipe.train.lr == value


@pytest.mark.parametrize("word", ["on", "yes", "12:30", "2020-01-01", "off", "1_000"])
def test_words_that_yaml_1_1_would_change_stay_text(write_recipe, word):
    text = f"model: {{name: {word}}}\ndata: {{name: mnist}}\ntrain: {{steps: 1it}}\n"
    assert read_recipe(write_recipe(text)).recipe.model.name == word


def test_a_leading_zero_is_decimal_and_0x_is_hexadecimal(write_recipe):
    text = MINIMAL + "seed: 017\nreplicates: 0x10\n"
    recipe = read_recipe(write_recipe(text)).recipe
    assert (recipe.seed, recipe.replicates) == (17, 16)


@pytest.mark.parametrize("value", ["true", "1.0", "'1'", "null", ".nan"])
def test_counts_are_whole_numbers_and_nothing_else(write_recipe, value):
    assert "seed" in error_of(write_recipe(MINIMAL + f"seed: {value}\n"))[0]


@pytest.mark.parametrize("setting", ["seed=99999999999999999999", "pruning.levels=100000", "data.split_seed=-1"])
def test_numbers_that_no_run_could_use_are_refused(write_recipe, setting):
    assert f"--set {setting}: " in error_of(write_recipe(MINIMAL), setting)[0]


@pytest.mark.parametrize("value", [".nan", ".inf", "0", "-1"])
def test_a_learning_rate_is_a_positive_number(write_recipe, value):
    assert "train.lr" in error_of(write_recipe(MINIMAL + f"  lr: {value}\n"))[0]


def test_overrides_are_checked_like_the_file(write_recipe):
    path = write_recipe(MINIMAL)
    assert read_recipe(path, ["pruning.rate=0.5", "train.lr=1e-3"]).recipe.pruning.rate == 0.5
    assert error_of(path, "train.lrr=1", "pruning.rate=2", "nonsense", "data.name.x=1") == [
        "--set nonsense: nonsense: write it as --set section.key=value",
        "--set data.name.x=1: data.name.x: there is no such section to set a key in",
        "--set train.lrr=1: train.lrr: unknown key; did you mean 'lr'?",
        "--set pruning.rate=2: pruning.rate: Input should be less than 1 (got 2)",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.momentum=0.9", "momentum and nesterov belong to optimizer: sgd"),
        ("train.evaluate_every=0it", "evaluate_every must be at least 1it"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(write_recipe, setting, message):
    assert message in error_of(write_recipe(MINIMAL), setting)[0]
