"""Networks as files, ours and other programs'."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from ticketlab.errors import RunError
from ticketlab.runs.network import read_foreign_state, read_network, write_network

STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


def same(found):
    return set(found) == set(STATE) and all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_network_comes_back_bit_for_bit_with_its_facts(tmp_path):
    write_network(tmp_path / "n.safetensors", STATE, {"widths": {"fc": 2}})
    state, facts = read_network(tmp_path / "n.safetensors")
    assert same(state) and facts == {"widths": {"fc": 2}}


def test_a_flipped_bit_and_another_format_are_told(tmp_path):
    path = tmp_path / "n.safetensors"
    write_network(path, STATE, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        read_network(path)
    save_file(STATE, path)
    with pytest.raises(RunError, match="damaged"):
        read_network(path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "acc": 0.9}, lambda s: {"model": s}])
def test_state_dicts_of_other_programs_are_found_in_their_wrappings(tmp_path, wrap):
    torch.save(wrap({f"module.{name}": value for name, value in STATE.items()}), tmp_path / "n.pth")
    assert same(read_foreign_state(tmp_path / "n.pth"))
    save_file(STATE, tmp_path / "n.safetensors")
    assert same(read_foreign_state(tmp_path / "n.safetensors"))


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": Evil()}, tmp_path / "worse.pt")
    for name in ("evil.pt", "worse.pt"):
        with pytest.raises(RunError, match="not a torch file of tensors alone"):
            read_foreign_state(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"nonsense", "cannot be read as safetensors"),
        ("a.pt", b"nonsense", "not a torch file"),
        ("a.pt", b"", "not a torch file"),
    ],
)
def test_files_that_are_none_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_foreign_state(tmp_path / name)


def test_a_missing_file_and_one_without_a_state_dict_are_told(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_foreign_state(tmp_path / "none.safetensors")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(RunError, match="has no state dict"):
        read_foreign_state(tmp_path / "epoch.pt")
