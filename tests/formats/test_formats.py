"""Every format on networks of every family: what is written is read, runs, and answers as torch does."""

import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticketlab.errors import FormatError
from ticketlab.formats import FORMATS, find_format, format_of
from ticketlab.formats.csr import csr_runner
from ticketlab.formats.format import Network, batches, check_facts, one_at_a_time, torch_runner
from ticketlab.models import models
from ticketlab.models.build import network_from
from ticketlab.models.compact import own_memory_
from ticketlab.pruning.masks import full_mask, masked

GRAY, COLOUR = (1, 12, 12), (3, 32, 32)
FAMILIES = {
    "lenet_300_100": (GRAY, {"widths": {"fc1": 20, "fc2": 10}}),
    "lenet_5": ((1, 28, 28), {"widths": {"conv1": 4, "conv2": 6, "fc1": 12}}),
    "lenet_5 batch_norm": ((1, 28, 28), {"batch_norm": True, "widths": {"conv1": 4, "conv2": 6, "fc1": 12}}),
    "conv_2": (COLOUR, {"widths": {"conv1": 4, "conv2": 6, "fc1": 12, "fc2": 8}}),
    "conv_4": (COLOUR, {"widths": {"conv1": 4, "conv2": 6, "conv3": 6, "conv4": 4, "fc1": 12, "fc2": 8}}),
    "conv_6": (COLOUR, {"dropout": 0.5, "widths": {"conv1": 4, "conv6": 4, "fc1": 12}}),
    "vgg_16": (COLOUR, {"widths": {f"conv{i}": 8 for i in range(1, 14)}}),
    "resnet_20": (COLOUR, {}),
    "har_cnn": ((6, 1, 128), {"widths": {"conv1": 8, "conv2": 12}}),
    "mlp": ((18, 1, 1), {"hidden": [8, 6]}),
}


def family(name):
    shape, options = FAMILIES[name]
    torch.manual_seed(0)
    model = models.find(name.split()[0])(shape, 10, **options)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after training: neither 0 nor 1
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.1, 0.1)
    mask = {key: torch.rand(kept.shape) < 0.4 for key, kept in full_mask(model).items()}
    model.load_state_dict(masked(model.state_dict(), mask))
    facts = {
        "name": name,
        "model": {"name": name.split()[0], "file": None, "options": options},
        "input_shape": list(shape),
        "classes": 10,
        "labels": list("0123456789"),
        "data": "noise",
        "mean": [0.5] * shape[0],
        "std": [0.25] * shape[0],
        "density": 0.4,
    }
    return Network(name, own_memory_(model.eval()), mask, facts)


def here(*names):
    """Formats to test; those whose packages are absent skip with what to install."""

    def one(name):
        try:
            FORMATS[name].check(name)
        except FormatError as error:
            return pytest.param(name, marks=pytest.mark.skip(reason=str(error)))
        return name

    return [one(name) for name in names or FORMATS]


@pytest.mark.parametrize("form", here())
@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_answers_as_the_network_does(name, form, capfd):
    network, made = family(name), FORMATS[form]
    images = torch.randn(7, *network.facts["input_shape"]).numpy()
    loaded = made.open(made.make(network, "float32", torch.empty(0)))
    own = torch_runner(network.model)(images)
    assert np.abs(loaded.run(images) - own).max() <= made.tolerance
    assert np.abs(loaded.run(images[:1]) - torch_runner(network.model)(images[:1])).max() <= made.tolerance
    assert loaded.facts == network.facts
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", here("onnx", "executorch", "litert"))
@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_int8_files_are_small_and_near(form, precision):
    network = family("lenet_300_100")
    network = replace(network, facts={**network.facts, "precision": precision})
    images = torch.randn(96, *GRAY)
    loaded = FORMATS[form].open(FORMATS[form].make(network, precision, images))
    own, found = torch_runner(network.model)(images.numpy()), loaded.run(images.numpy())
    # static ranges are those of the images: half a step of 1/255 of them in each of three layers, and the weights'
    assert 0 < np.abs(found - own).max() < 0.1 * np.abs(own).max()
    assert loaded.facts == network.facts


@pytest.mark.parametrize("form", here("onnx", "executorch"))
def test_static_int8_takes_convolutions_and_dynamic_is_refused_with_the_reason(form):
    network, images = family("lenet_5 batch_norm"), torch.randn(64, 1, 28, 28)
    made = FORMATS[form]
    loaded = made.open(made.make(network, "int8", images))
    own, found = torch_runner(network.model)(images.numpy()), loaded.run(images.numpy())
    assert 0 < np.abs(found - own).max() < 0.15 * np.abs(own).max()
    assert "convolutions" in made.refuses(network, "int8_dynamic")
    assert made.refuses(network, "int8") is None
    assert made.refuses(family("lenet_300_100"), "int8_dynamic") is None


@pytest.mark.parametrize("form", here("litert"))
@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("name", ["lenet_5 batch_norm", "resnet_20"])
def test_litert_takes_convolutions_in_both_int8_forms(form, precision, name):
    network = family(name)
    images = torch.randn(64, *network.facts["input_shape"])
    loaded = FORMATS[form].open(FORMATS[form].make(network, precision, images))
    own, found = torch_runner(network.model)(images.numpy()), loaded.run(images.numpy())
    assert 0 < np.abs(found - own).max() < 0.15 * np.abs(own).max()


def test_calibration_has_a_full_batch_even_of_few_images():
    images = torch.arange(5.0).view(5, 1)
    assert [batch.flatten().tolist() for batch in batches(images, 2)] == [[0, 1], [2, 3]]
    assert [batch.flatten().tolist() for batch in batches(images, 8)] == [[0, 1, 2, 3, 4, 0, 1, 2]]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a"]}, {"labels": None}, {"input_shape": [12, 12]}, {"input_shape": [1, 12, 10**9]},
        {"input_shape": [1.0, 12, 12]}, {"mean": [0.1, 0.2]}, {"std": [0.0]}, {"std": ["1"]}, {"name": 3},
        {"classes": 11},
    ],
)  # fmt: skip
def test_facts_that_contradict_themselves_are_an_error(change):
    facts = family("lenet_300_100").facts
    check_facts(facts)
    with pytest.raises(FormatError, match="what its inputs and its answers are"):
        check_facts({**facts, **change})


def test_a_file_with_such_facts_is_not_opened():
    network = family("lenet_300_100")
    changed = replace(network, facts={**network.facts, "labels": ["a"]})
    with pytest.raises(FormatError, match="what its inputs and its answers are"):
        FORMATS["onnx"].open(FORMATS["onnx"].make(changed, "float32", torch.empty(0)))
    for facts in ([], None, "text"):
        with pytest.raises(FormatError):
            check_facts(facts)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what memory was taken")
@pytest.mark.parametrize("form", ["safetensors", "ticket"])
def test_a_file_that_claims_a_huge_network_takes_no_memory_for_it(form, tmp_path):
    network = family("lenet_300_100")
    huge = {**network.facts["model"], "options": {"widths": {"fc1": 4_000_000}}}
    content = FORMATS[form].make(replace(network, facts={**network.facts, "model": huge}), "float32", torch.empty(0))
    assert len(content) < 40_000
    (tmp_path / "file").write_bytes(content)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom ticketlab.formats import FORMATS\n"
        "from ticketlab.errors import TicketlabError\n"
        "def peak():\n    return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "before = peak()\ntry:\n    FORMATS[sys.argv[1]].open(Path(sys.argv[2]).read_bytes())\n"
        "except TicketlabError as error:\n    print(error)\nprint(peak() - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, form, tmp_path / "file"], capture_output=True, text=True, check=True
    )
    # a compact network takes the sizes of its state, so this one is read; 4 million units would take 2 GiB
    assert int(ran.stdout.split()[-1]) < 200


def members(content):
    """The bytes of a file, and of what is packed in it."""
    found = [content]
    if zipfile.is_zipfile(io.BytesIO(content)):
        archive = zipfile.ZipFile(io.BytesIO(content))
        found += [archive.read(name) for name in archive.namelist()]
    return found


@pytest.mark.parametrize("form", here())
def test_no_image_and_no_folder_of_this_machine_is_in_a_file(form):
    network, made = family("lenet_300_100"), FORMATS[form]
    images = torch.randn(64, *GRAY)
    for precision in made.precisions:
        for part in members(made.make(network, precision, images)):
            assert not any(image.numpy().tobytes() in part for image in images)
            assert not any(row.numpy().tobytes() in part for row in images.view(-1, 12))
            assert not any(trace in part for trace in (b"site-packages", b"/container.py", b"/linear.py", b"/tests/"))


@pytest.mark.parametrize("form", here("onnx", "pt2"))
def test_no_stack_trace_of_a_model_with_a_forward_of_its_own_is_in_a_file(form):
    for part in members(FORMATS[form].make(family("resnet_20"), "float32", torch.empty(0))):
        assert not any(trace in part for trace in (b"site-packages", b"resnet.py", b"/container.py"))


def test_example_inputs_are_zeros():
    assert not family("lenet_300_100").zeros(3).any()


@pytest.mark.parametrize("form", here())
def test_compact_weights_bring_nothing_of_the_tensors_that_they_were_cut_from(form):
    big = torch.randn(1000, 144)
    network = family("lenet_300_100")
    network.model.fc1.weight = nn.Parameter(big[:20])
    own_memory_(network.model)
    assert network.model.fc1.weight.untyped_storage().nbytes() == 20 * 144 * 4
    content = FORMATS[form].make(network, "float32", torch.empty(0))
    assert len(content) < 40_000  # 13,000 bytes of weights; the big tensor has 576,000
    assert not any(big[500].numpy().tobytes() in part for part in members(content))


@pytest.mark.parametrize("form", here())
def test_a_file_that_is_cut_off_or_of_another_kind_is_one_clear_error(form):
    made = FORMATS[form]
    content = made.make(family("lenet_300_100"), "float32", torch.empty(0))
    for damaged in (content[: len(content) // 2], content[:20], b"", b"something else"):
        with pytest.raises(FormatError):
            made.open(damaged)


def test_an_onnx_file_that_another_program_wrote_says_so():
    import onnx
    from onnx import helper

    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(FormatError, match="did not write"):
        FORMATS["onnx"].open(model.SerializeToString())


def test_a_network_that_cannot_be_exported_is_named():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(144, 10)

        def forward(self, images):
            return self.fc(images.flatten(1)) if images.sum() > 0 else self.fc(-images.flatten(1))

    network = replace(family("lenet_300_100"), name="branching", model=Branching().eval())
    with pytest.raises(FormatError, match="branching"):
        FORMATS["pt2"].make(network, "float32", torch.empty(0))


@pytest.mark.parametrize("form", ["safetensors", "ticket"])
def test_weights_of_a_users_own_model_need_that_model(form):
    network, made = family("lenet_300_100"), FORMATS[form]
    own = {**network.facts, "model": {"name": "mine", "file": "mine.py", "options": {}}}
    content = made.make(replace(network, facts=own), "float32", torch.empty(0))
    with pytest.raises(FormatError, match=r"mine\.py, and no code"):
        made.open(content)
    images = torch.randn(2, *GRAY).numpy()
    assert np.array_equal(made.open(content, network.model).run(images), torch_runner(network.model)(images))


def test_a_ticket_is_smaller_than_its_tensors_and_rebuilds_bit_for_bit():
    from ticketlab.codec import decode

    network = family("lenet_300_100")
    content = FORMATS["ticket"].make(network, "float32", torch.empty(0))
    found = decode(content)
    rebuilt = network_from(found.state, found.facts).state_dict()
    for name, value in network.model.state_dict().items():
        assert torch.equal(rebuilt[name], value)
    assert len(content) < 0.6 * len(FORMATS["safetensors"].make(network, "float32", torch.empty(0)))


def test_sparse_rows_answer_as_the_network_does_and_refuse_convolutions():
    network = family("lenet_300_100")
    images = torch.randn(5, *GRAY).numpy()
    assert np.abs(csr_runner(network)(images) - torch_runner(network.model)(images)).max() < 1e-5
    first = replace(network, model=nn.Sequential(nn.ReLU(), *network.model.children()))
    before = images.copy()
    csr_runner(first)(images)
    assert np.array_equal(images, before)
    with pytest.raises(FormatError, match="Conv2d has no product"):
        csr_runner(family("lenet_5"))
    with pytest.raises(FormatError, match="only a chain"):
        csr_runner(family("resnet_20"))


def test_a_program_for_four_images_takes_any_number():
    calls = []

    def four(images):
        calls.append(len(images))
        return images.sum(axis=1, keepdims=True)

    images = np.arange(20, dtype=np.float32).reshape(10, 2)
    found = one_at_a_time(four, 4)(images)
    assert found[:, 0].tolist() == images.sum(1).tolist()
    assert calls == [4, 4, 4]


def test_formats_are_found_by_name_and_by_ending():
    with pytest.raises(FormatError, match="unknown format 'onx'; did you mean 'onnx'"):
        find_format("onx")
    assert format_of(Path("a/b.int8.onnx"))[0] == "onnx"
    assert format_of(Path("b.onnx.rejected"))[0] == "onnx"
    with pytest.raises(FormatError, match=r"b\.pth: its ending names no format"):
        format_of(Path("b.pth"))
