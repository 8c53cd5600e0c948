"""Runs on real digits, exported: what is written, what is refused, what the gate says."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ticketlab.codec import decode
from ticketlab.data.batches import Examples
from ticketlab.data.sources import load_dataset
from ticketlab.errors import DataError, FormatError, RunError
from ticketlab.formats import FORMATS
from ticketlab.formats.format import Loaded, torch_runner
from ticketlab.pruning.masks import masked
from ticketlab.recipe_file import read_recipe
from ticketlab.runs.network import read_network
from ticketlab.workflows.export import calibration_images, check, export_network, judge, own_answers
from ticketlab.workflows.fuse import fuse_run
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.predict import predict
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import newest, shipment, sources
from ticketlab.workflows.source import Elsewhere, from_run, from_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pruning run of two levels and a fused network made from it."""
    from support import TINY

    from ticketlab.data.files import Places

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tiny.yaml").write_text(TINY)
    places = Places(None, folder / "cache", may_download=False)
    machine = Machine(folder / "runs", places, "cpu")
    events = list(prune_run(read_recipe(folder / "tiny.yaml", ["train.steps=150it"]), machine))
    store = next(event.store for event in events if isinstance(event, Started))
    *_, fusion = fuse_run(from_run(store, places, None, 1, ()), Request(share=0.5, refit=False), machine)
    return machine, store, fusion.store


def made(runs, which=1, level=None):
    machine, *stores = runs
    return shipment(stores[which - 1], machine.places, level)


def test_the_newest_network_is_the_fused_one_and_a_level_is_of_a_pruning_run(runs):
    machine, pruned, fused = runs
    assert newest(machine.runs, None, None).name == fused.name
    assert newest(machine.runs, None, 1).name == pruned.name
    assert newest(machine.runs, "tiny", 1).name == pruned.name
    with pytest.raises(RunError, match="fits several runs"):
        newest(machine.runs, "tiny", None)
    with pytest.raises(RunError, match="leave --level"):
        shipment(fused, machine.places, 1)
    with pytest.raises(RunError, match="no finished run"):
        newest(machine.runs / "nowhere", None, None)
    with pytest.raises(RunError, match="has a replicate 2"):
        newest(machine.runs, None, replicate=2)
    assert newest(machine.runs, fused.name, 1).name == fused.name  # and shipment says what is wrong with that
    pruned.set_state("interrupted")
    try:
        with pytest.raises(RunError, match="no finished run"):
            newest(machine.runs, None, 1)
    finally:
        pruned.set_state("finished")


def test_a_shipment_is_the_network_of_the_early_stop_step_with_its_facts(runs):
    _, store, _ = runs
    for level, kind in ((0, "dense"), (2, "masked")):
        given = made(runs, 1, level)
        ticket = store.read_ticket(1, level)
        weights = masked(store.read_weights(1, level, "early_stop"), ticket.mask)
        assert given.kind == kind
        assert all(torch.equal(given.network.model.state_dict()[name], value) for name, value in weights.items())
    facts = made(runs, 1, 2).network.facts
    assert facts["density"] == pytest.approx(store.read_level(1, 2).density)
    assert facts["widths"] == {"fc1": 300, "fc2": 100, "output": 10}
    assert (facts["input_shape"], facts["classes"], facts["labels"]) == ([1, 8, 8], 10, list("0123456789"))
    assert facts["recipe_hash"] == store.read_manifest()["hash"]
    assert len(facts["mean"]) == len(facts["std"]) == 1
    assert "plugins" not in facts


def test_a_fused_shipment_knows_where_it_came_from(runs):
    machine, pruned, fused = runs
    given = made(runs, 2)
    state, _ = read_network(fused.path / "fused.safetensors")
    assert given.kind == "fused"
    assert all(torch.equal(given.network.model.state_dict()[name], value) for name, value in state.items())
    assert [(source.kind, source.store.name) for source in sources(given, machine.runs, machine.places)] == [
        ("dense", pruned.name),
        ("masked", pruned.name),
    ]
    with pytest.raises(RunError, match="no run"):
        sources(given, machine.runs / "elsewhere", machine.places)
    splits, own = given.splits, made(runs, 1).splits
    assert torch.equal(splits.validation.images, own.validation.images)
    assert torch.equal(splits.test.labels, own.test.labels)


@pytest.mark.parametrize("which", [1, 2])
def test_files_are_judged_and_kept_with_a_record(runs, which, tmp_path):
    given = made(runs, which)
    wanted = [(name, "float32") for name in ("onnx", "pt2", "safetensors", "ticket")]
    records = list(export_network(given, wanted, tmp_path))
    assert [record["format"] for record in records] == ["onnx", "pt2", "safetensors", "ticket"]
    labels = given.splits.test
    own = torch_runner(given.network.model)(normalised(labels))
    accuracy = float((own.argmax(1) == labels.labels.numpy()).mean())
    held_out = given.splits.validation
    validation = float(
        (torch_runner(given.network.model)(normalised(held_out)).argmax(1) == held_out.labels.numpy()).mean()
    )
    for record in records:
        content = Path(record["path"]).read_bytes()
        assert record["accepted"] and record["reason"] is None
        assert record["bytes"] == len(content)
        assert record["test_accuracy"] == pytest.approx(accuracy)
        assert record["top1_agreement"] == 1.0
        assert record["max_abs_diff"] <= FORMATS[record["format"]].tolerance
        facts = FORMATS[record["format"]].open(content).facts
        assert facts == {**given.network.facts, "precision": "float32"}
        assert record["images"] == 200
        assert record["val_accuracy"] == pytest.approx(validation)
    assert recorded(tmp_path) == [{"network": given.network.name, **record} for record in records]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["export.json", *(record["path"].rpartition("/")[2] for record in records)]
    )


def recorded(folder):
    return json.loads((folder / "export.json").read_text())["files"]


def test_calibration_images_are_the_first_of_training(runs):
    given = made(runs, 1)
    train = given.splits.train
    assert torch.allclose(
        calibration_images(given), torch.from_numpy(normalised(train.some(torch.arange(512)))), atol=1e-5
    )


def test_a_shipment_owns_its_memory_and_names_no_folder(runs):
    machine, _, _ = runs
    for which in (1, 2):
        network = made(runs, which).network
        for value in network.model.state_dict().values():
            assert value.untyped_storage().nbytes() == value.nbytes
        assert str(machine.runs.parent) not in json.dumps(network.facts)


def test_records_of_earlier_files_are_kept_and_a_new_one_takes_the_old_ones_place(runs, tmp_path):
    given = made(runs, 2)
    for wanted in (["onnx", "ticket"], ["ticket"], ["safetensors"]):
        list(export_network(given, [(name, "float32") for name in wanted], tmp_path))
    assert [file["format"] for file in recorded(tmp_path)] == ["onnx", "ticket", "safetensors"]


def test_where_one_cannot_be_made_none_is_written(runs, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("\n\x1b[31mno such operator\x1b[0m\nNext steps: …")

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=broken))
    with pytest.raises(FormatError, match=r"cannot be written as \.pt2: ValueError: no such operator$"):
        list(export_network(made(runs, 2), [("ticket", "float32"), ("pt2", "float32")], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_told_before_anything_is_made(runs, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FormatError, match="is a file; name a folder"):
        list(export_network(made(runs, 2), [("ticket", "float32")], tmp_path / "out"))


def normalised(examples):
    return ((examples.images.double() / 255 - mean_of(examples)) / std_of(examples)).float().numpy()


def std_of(examples):
    return 1 / (255 * examples.scale.double())


def mean_of(examples):
    return -examples.shift.double() * std_of(examples)


def test_the_masked_network_as_a_ticket_keeps_its_mask(runs, tmp_path):
    given = made(runs, 1)
    (record,) = export_network(given, [("ticket", "float32")], tmp_path)
    found = decode(Path(record["path"]).read_bytes())
    mask = runs[1].read_ticket(1, 2).mask
    assert all(torch.equal(found.mask[name], mask[name]) for name in mask)
    assert record["path"].endswith("-level_2.ticket")


def test_lower_precisions_are_other_files(runs, tmp_path):
    given = made(runs, 1)
    wanted = [("onnx", "int8"), ("onnx", "int8_dynamic"), ("ticket", "int8"), ("ticket", "float16")]
    records = list(export_network(given, wanted, tmp_path))
    assert all(record["accepted"] for record in records)
    assert all(record["top1_agreement"] >= 0.99 for record in records)
    endings = [".".join(record["path"].rpartition("/")[2].split(".")[-2:]) for record in records]
    assert endings == ["int8.onnx", "int8_dynamic.onnx", "int8.ticket", "float16.ticket"]


def test_a_network_for_measurements_says_its_units_and_reads_no_pictures(runs, tmp_path):
    given = made(runs, 1)
    assert given.network.facts["per_unit"] == [255.0]
    facts = {**given.network.facts, "per_unit": [720.0], "data": "hapt"}
    path = tmp_path / "steps.onnx"
    path.write_bytes(FORMATS["onnx"].make(replace(given.network, facts=facts), "float32", torch.empty(0)))
    with pytest.raises(FormatError, match="reads the measurements of hapt, not pictures"):
        predict(path, [tmp_path / "cat.png"])


def test_a_rejected_file_is_kept_as_rejected_and_replaces_the_accepted_one(runs, tmp_path, monkeypatch):
    given = made(runs, 1)
    (good,) = export_network(given, [("onnx", "float32")], tmp_path)
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], tolerance=-1.0))
    (bad,) = export_network(given, [("onnx", "float32")], tmp_path)
    assert not bad["accepted"] and "logits differ" in bad["reason"]
    assert bad["path"] == good["path"] + ".rejected"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".rejected"]
    monkeypatch.undo()
    (again,) = export_network(given, [("onnx", "float32")], tmp_path)
    assert again["accepted"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".onnx"]


def two_hundred(network, answers):
    """A file whose answers are given, beside a network whose answers are its labels."""
    images = torch.zeros(200, 1, 1, 10, dtype=torch.uint8)
    labels = torch.arange(200) % 10
    images[torch.arange(200), 0, 0, labels] = 255
    examples = Examples(images, labels, torch.ones(1, 1, 1) / 255, torch.zeros(1, 1, 1))
    flat = replace(network, model=torch.nn.Flatten())
    return flat, Loaded(lambda given: answers(given.reshape(-1, 10).copy()), {}), examples


def wrong(count):
    def answer(logits):
        for row in range(count):
            logits[row] = np.roll(logits[row], 1)
        return logits

    return answer


@pytest.mark.parametrize(
    ("precision", "answers", "reason"),
    [
        ("float32", lambda logits: logits + 0.9e-4, None),
        ("float32", lambda logits: logits + 1.2e-4, "logits differ by 0.00012, more than 0.0001"),
        ("float32", lambda logits: logits * np.nan, "not finite"),
        ("int8", lambda logits: logits + 0.3, None),
        ("int8", wrong(1), None),
        ("int8", wrong(2), "validation accuracy falls by 1.00 points, more than 0.5"),
        ("int8", wrong(3), "the same answer for 98.50 % of images only"),
        ("float16", wrong(3), "the same answer for 98.50 % of images only"),
    ],
)
def test_the_gate_by_hand(runs, precision, answers, reason):
    network, loaded, examples = two_hundred(made(runs).network, answers)
    judged = judge(own_answers(network, examples), loaded, FORMATS["onnx"], precision, examples)
    assert (judged.reason or "").startswith(reason or "") if reason is None else reason in judged.reason
    assert (judged.reason is None) == (reason is None)


def test_too_few_images_cannot_accept_a_lower_precision(runs):
    network, loaded, examples = two_hundred(made(runs).network, lambda logits: logits)
    some = examples.some(torch.arange(199))
    own = own_answers(network, some)
    assert "too few to tell" in judge(own, loaded, FORMATS["onnx"], "int8", some).reason
    assert judge(own, loaded, FORMATS["onnx"], "float32", some).reason is None


def test_everything_that_cannot_be_made_is_told_at_once_and_nothing_is_written(runs, tmp_path, monkeypatch):
    given = made(runs, 1)
    monkeypatch.setitem(FORMATS, "litert", replace(FORMATS["litert"], needs=("no_such_package",)))
    wanted = [("pt2", "int8"), ("onnx", "float16"), ("litert", "float32"), ("ticket", "float32")]
    with pytest.raises(FormatError) as caught:
        list(export_network(given, wanted, tmp_path / "out"))
    text = str(caught.value)
    assert "pt2 has no int8; it has float32" in text
    assert "onnx has no float16" in text
    assert "litert needs no_such_package" in text and "pip install litert-torch" in text
    assert not (tmp_path / "out").exists()


def test_dynamic_int8_of_convolutions_is_refused_with_the_reason(runs):
    given = made(runs, 1).network
    convolution = replace(given, model=torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)))
    with pytest.raises(FormatError, match="several times slower"):
        check(convolution, [("onnx", "int8_dynamic")])
    check(given, [("onnx", "int8_dynamic")])


PLUGIN = """
from dataclasses import replace
from ticketlab.data.sources import datasets, load_dataset

@datasets.register("letters")
def letters(places):
    digits = load_dataset("digits", places)
    named = tuple("abcdefghijkl")
    return replace(digits, name="letters", classes=12, named=named)
"""


def test_a_fused_network_on_a_plugins_data_keeps_its_class_names(tmp_path, places):
    (tmp_path / "letters_plugin.py").write_text(PLUGIN)
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(
        "plugins: [letters_plugin.py]\nmodel: {name: lenet_300_100}\ndata: {name: letters, validation: 200}\n"
        "train: {steps: 20it, batch_size: 32}\npruning: {levels: 1, rate: 0.2}\n"
    )
    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(read_recipe(recipe, ()), machine) if isinstance(event, Started)]
    *_, fusion = fuse_run(from_run(store, places, None, 1, ()), Request(share=0.5, refit=False), machine)
    code = (
        "import sys\nfrom pathlib import Path\nfrom ticketlab.data.files import Places\n"
        "from ticketlab.runs.store import RunStore\nfrom ticketlab.workflows.ship import shipment\n"
        "folder = Path(sys.argv[1])\n"
        "given = shipment(RunStore(Path(sys.argv[2])), Places(None, folder, may_download=False))\n"
        "print(given.network.facts['labels'])\n"
    )
    # in another process, where nothing has loaded the plugin yet
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path, fusion.store.path], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == str(list("abcdefghijkl"))


def test_class_names_that_are_too_few_are_an_error(places):
    digits = load_dataset("digits", places)
    assert digits.labels == tuple("0123456789")
    assert replace(digits, classes=12).labels[-1] == "11"
    with pytest.raises(DataError, match="12 classes and names for 2"):
        assert replace(digits, classes=12, named=("a", "b")).labels


def test_a_network_from_elsewhere_names_its_file_and_not_its_folder(tmp_path, places):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20), torch.nn.ReLU(), torch.nn.Linear(20, 10))
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), "
        "nn.Linear(20, 10))\n"
    )
    folder = tmp_path / "secret"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "weights.pt")
    machine = Machine(tmp_path / "runs", places, "cpu")
    elsewhere = Elsewhere(folder / "weights.pt", f"{tmp_path / 'my_net.py'}:net", "digits")
    *_, fusion = fuse_run(from_weights(elsewhere, places, ()), Request(share=0.5, refit=False), machine)
    facts = shipment(fusion.store, places).network.facts
    assert facts["source"]["weights"] == "weights.pt" and facts["model"]["file"] == "my_net.py"
    assert str(tmp_path) not in json.dumps(facts)
