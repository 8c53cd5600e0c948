import pytest
import torch

from ticketlab.errors import RunError
from ticketlab.runs.files import read_json, read_tensors, remove_partial, write_bytes, write_json, write_tensors

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.tensor([True, False]),
    "c": torch.arange(5, dtype=torch.uint8),
    "d": torch.randn(2).bfloat16(),
    "e": torch.zeros(0),
    "f": torch.tensor(3.0),
    "g": torch.randn(4, 3).t(),
}


def test_tensors_and_facts_come_back_bit_for_bit(tmp_path):
    write_tensors(tmp_path / "x", TENSORS, {"step": 3, "curve": [{"loss": 0.1}]})
    tensors, facts = read_tensors(tmp_path / "x")
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert facts == {"step": 3, "curve": [{"loss": 0.1}]}


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, {"b": 1, "a": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_slice_does_not_bring_the_whole_tensor_along(tmp_path):
    write_tensors(tmp_path / "x", {"row": torch.zeros(1000, 1000)[:2]}, {})
    assert (tmp_path / "x").stat().st_size < 2 * 1000 * 4 + 4096


def test_damage_anywhere_is_noticed_and_the_file_named(tmp_path):
    path = tmp_path / "level_3" / "x"
    write_tensors(path, TENSORS, {"step": 3})
    whole = path.read_bytes()
    damages = [whole[:cut] for cut in (0, 1, 8, 50, len(whole) - 1)]
    damages += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    damages += [b"\xff" * 100, whole + b"x"]
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            tensors, facts = read_tensors(path)
        except RunError as error:
            assert str(path) in str(error)
            assert f"delete {path.parent}" in str(error)
        else:  # a flipped bit in the header's blanks or digits may change nothing that is read
            assert facts == {"step": 3}
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    write_bytes(tmp_path / "level_1/keep", b"1")
    (tmp_path / "level_1/.keep.abc.partial").write_bytes(b"half")
    remove_partial(tmp_path)
    assert [p.name for p in (tmp_path / "level_1").iterdir()] == ["keep"]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_json_file_that_holds_no_object_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RunError, match=r"x\.json: damaged"):
        read_json(tmp_path / "x.json")
