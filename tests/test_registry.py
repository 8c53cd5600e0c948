import pytest

from ticketlab.errors import PluginError, TicketlabError
from ticketlab.registry import Registry, check_options, load_file


def two_options(weight, *, p, scale=1.0):
    return weight * p * scale


def test_a_near_miss_is_suggested():
    registry = Registry("criterion")
    registry.register("flipout")(lambda: None)
    with pytest.raises(TicketlabError, match="unknown criterion 'flippout'; did you mean 'flipout'"):
        registry.find("flippout")


def test_a_name_cannot_be_taken_twice():
    registry = Registry("model")
    registry.register("a")(lambda: None)
    with pytest.raises(PluginError, match="already registered"):
        registry.register("a")(lambda: None)


def test_options_are_held_against_the_signature():
    assert check_options(two_options, {"p": 2}) == []
    assert check_options(two_options, {"q": 2}) == [
        ("q", "unknown option 'q'; known: p, scale"),
        ("p", "option 'p' is required"),
    ]


def test_a_file_that_raises_is_blamed_with_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = x / 0\n")
    with pytest.raises(PluginError, match=r"broken\.py:2: ZeroDivisionError"):
        load_file(path)
    path.write_text("x = (\n")
    with pytest.raises(PluginError, match=r"broken\.py:1: SyntaxError"):
        load_file(path)


def test_a_missing_file_and_one_that_is_no_python_are_told(tmp_path):
    with pytest.raises(PluginError, match="cannot be read"):
        load_file(tmp_path / "none.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(PluginError, match=r"must end in \.py"):
        load_file(tmp_path / "notes.txt")


def test_a_file_is_run_once(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text("import builtins\nbuiltins.ticketlab_count = getattr(builtins, 'ticketlab_count', 0) + 1\n")
    assert load_file(path) is load_file(path)
    import builtins

    assert builtins.ticketlab_count == 1
    del builtins.ticketlab_count
