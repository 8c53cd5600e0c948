"""`ticketlab export`, `bench` and `predict` as they are typed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.data.sources import load_dataset
from ticketlab.formats import FORMATS

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from support import TINY

    folder = tmp_path_factory.mktemp("shipping")
    (folder / "tiny.yaml").write_text(TINY)
    ran = CliRunner().invoke(
        app, ["prune", str(folder / "tiny.yaml"), "-s", "train.steps=150it", "-q", "--runs", str(folder / "runs")]
    )
    assert ran.exit_code == 0, ran.output
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)

    def call(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--runs", str(folder / "runs")])

    return call


@pytest.fixture
def pictures(tmp_path, places):
    """Three test digits as PNG files, and their labels."""
    dataset = load_dataset("digits", places)
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"digit{index}.png")
        Image.fromarray(dataset.test_images[index, 0].numpy()).save(paths[-1])
    return paths, dataset


def test_onnx_is_the_default_and_lies_in_the_run(run, folder):
    ran = run("export", "--json")
    assert ran.exit_code == 0, ran.output
    (file,) = json.loads(ran.stdout)["files"]
    assert file["format"] == "onnx" and file["accepted"]
    assert Path(file["path"]).parent.name == "export" and Path(file["path"]).stat().st_size == file["bytes"]
    assert {"format", "path", "bytes", "max_abs_diff", "top1_agreement", "test_accuracy", "accepted"} <= set(file)
    assert "network: tiny-" in ran.stderr


def test_several_formats_and_precisions_make_a_table(run, tmp_path):
    ran = run("export", "tiny", "-f", "onnx,ticket", "--int8", "--level", 1, "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    assert "level_1.int8.onnx" in ran.stdout and "accepted" in ran.stderr
    assert len(list(tmp_path.glob("*level_1.int8.*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["-f", ","], "--format: name one or more of"),
        (["-f", "pt2", "--int8"], "pt2 has no int8; it has float32"),
        (["--level", "9"], "has a level 9"),
        (["tiny", "--level", "9"], "has levels 0 to 2, not 9"),
        (["nothing"], "no run 'nothing'"),
    ],
)
def test_wrong_input_is_one_error_and_nothing_is_written(run, tmp_path, arguments, message):
    ran = run("export", *arguments, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_gate_is_exit_code_3_and_the_file_is_kept_as_rejected(run, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], tolerance=-1.0))
    ran = run("export", "-f", "onnx,ticket", "--out", tmp_path, "--json")
    assert ran.exit_code == 3
    onnx, ticket = json.loads(ran.stdout)["files"]
    assert not onnx["accepted"] and onnx["path"].endswith(".onnx.rejected") and ticket["accepted"]
    assert "logits differ" in ran.stderr


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors", "ticket"])
def test_predict_says_what_the_network_says(run, tmp_path, pictures, form):
    paths, dataset = pictures
    made = json.loads(run("export", "-f", form, "--out", tmp_path, "--json").stdout)["files"][0]
    ran = CliRunner().invoke(app, ["predict", made["path"], *map(str, paths), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    loaded = FORMATS[form].open(Path(made["path"]).read_bytes())
    pixels = dataset.test_images[:3].double().numpy() / 255
    logits = loaded.run(((pixels - loaded.facts["mean"][0]) / loaded.facts["std"][0]).astype("float32"))
    assert [row["class"] for row in found["predictions"]] == logits.argmax(1).tolist()
    exact = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    assert [row["probability"] for row in found["predictions"]] == pytest.approx(exact.max(1).tolist(), abs=1e-5)
    table = CliRunner().invoke(app, ["predict", made["path"], str(paths[0])])
    assert found["predictions"][0]["label"] in table.stdout


def test_a_dark_drawing_on_white_is_noticed_and_inverted(run, tmp_path, pictures):
    paths, dataset = pictures
    made = json.loads(run("export", "--out", tmp_path, "--json").stdout)["files"][0]
    light = tmp_path / "light.png"
    Image.fromarray(255 - dataset.test_images[0, 0].numpy()).resize((80, 80), Image.Resampling.NEAREST).save(light)
    doubted = CliRunner().invoke(app, ["predict", made["path"], str(light)])
    assert "try --invert" in doubted.stderr
    turned = CliRunner().invoke(app, ["predict", made["path"], str(light), "--invert", "--json"])
    straight = CliRunner().invoke(app, ["predict", made["path"], str(paths[0]), "--json"])
    assert "try --invert" not in turned.stderr
    one, other = (json.loads(ran.stdout)["predictions"][0] for ran in (turned, straight))
    assert one["class"] == other["class"]


def test_transparency_is_shown_on_white_and_16_bits_are_brought_to_8(run, tmp_path, pictures):
    paths, dataset = pictures
    made = json.loads(run("export", "--out", tmp_path, "--json").stdout)["files"][0]
    digit = dataset.test_images[0, 0].numpy()
    drawn = np.zeros((8, 8, 4), np.uint8)
    drawn[..., 3] = digit  # black, where there is anything
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    Image.fromarray(digit.astype(np.uint16) * 257).save(tmp_path / "deep.png")

    def shares(*arguments):
        ran = CliRunner().invoke(app, ["predict", made["path"], *map(str, arguments), "--json"])
        assert ran.exit_code == 0, ran.output
        likely = json.loads(ran.stdout)["predictions"][0]["likely"]
        return [[other["class"] for other in likely], [round(other["probability"], 6) for other in likely]]

    straight = shares(paths[0])
    assert shares(tmp_path / "drawn.png", "--invert") == straight
    assert shares(tmp_path / "deep.png") == straight


def test_a_rejected_file_says_so(run, tmp_path, pictures):
    made = Path(json.loads(run("export", "--out", tmp_path, "--json").stdout)["files"][0]["path"])
    made.rename(made.with_name(made.name + ".rejected"))
    ran = CliRunner().invoke(app, ["predict", f"{made}.rejected", str(pictures[0][0])])
    assert ran.exit_code == 0 and "did not pass its gate" in ran.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("network.pth", b"", "names no format"),
        ("network.onnx", b"not a network", "cannot be read as .onnx"),
        ("network.ticket", b"TKLT", "cut off at its beginning"),
        ("network.safetensors", b"1234567890", "not a network that ticketlab wrote"),
    ],
)
def test_a_file_that_is_no_network_is_one_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    ran = CliRunner().invoke(app, ["predict", str(tmp_path / name), str(tmp_path / "no.png")])
    assert ran.exit_code == 2
    assert message in ran.stderr and name in ran.stderr


def test_a_picture_that_is_none_is_named(run, tmp_path):
    made = json.loads(run("export", "--out", tmp_path, "--json").stdout)["files"][0]
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name, message in (
        ("text.png", "not a picture"),
        ("missing.png", "no such file"),
        ("folder", "a folder"),
        ("huge.png", "too large"),
    ):
        ran = CliRunner().invoke(app, ["predict", made["path"], str(tmp_path / name)])
        assert ran.exit_code == 2
        assert f"{name}: {message}" in ran.stderr


def test_the_example_for_a_board_says_the_same_without_ticketlab(run, tmp_path, pictures):
    paths, _ = pictures
    made = json.loads(run("export", "--out", tmp_path, "--json").stdout)["files"][0]
    code = EXAMPLE.read_text()
    assert "ticketlab" not in "".join(line for line in code.splitlines() if line.startswith(("import", "from")))
    large = tmp_path / "large.png"
    Image.open(paths[0]).resize((50, 70)).convert("RGB").save(large)
    for picture in (paths[0], large):
        told = json.loads(CliRunner().invoke(app, ["predict", made["path"], str(picture), "--json"]).stdout)
        command = [sys.executable, EXAMPLE, made["path"], picture]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        best = told["predictions"][0]
        assert ran.stdout.split()[:2] == [best["label"], f"{100 * best['probability']:.1f}"]
    ran = subprocess.run([sys.executable, EXAMPLE, made["path"]], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and ran.stderr.startswith("usage:")


def test_bench_prints_one_object_or_tables(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ticketlab.workflows.bench.RUNTIMES", {"onnx": ("ONNX Runtime", ("float32",))})
    ran = run("bench", "--json", "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    wanted = {"network", "runtime", "dtype", "batch", "latency_us_p10", "latency_us_median", "bytes", "bytes_zlib"}
    assert wanted | {"macs", "effective_macs"} <= set(found["rows"][0])
    table = run("bench", "tiny", "--level", "1", "--out", tmp_path)
    assert table.exit_code == 0, table.output
    for word in ("dense", "masked", "ONNX Runtime", "A mask alone buys no bytes"):
        assert word in table.stdout
