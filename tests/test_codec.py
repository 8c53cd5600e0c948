import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlab.codec import LIMIT, MAGIC, PREFIX, VERSION, Sparse, decode, encode, mask_digest
from ticketlab.errors import FormatError, UnknownMask
from ticketlab.pruning.masks import masked

FACTS = {"model": {"name": "tiny"}, "classes": 2}


def sparse(density=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = {"fc.weight": torch.rand(40, 25, generator=generator) < density}
    state = {
        "fc.weight": torch.randn(40, 25, generator=generator),
        "fc.bias": torch.randn(40, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
    }
    return Sparse(mask, masked(state, mask), FACTS)


def equal(one, other):
    return (
        one.facts == other.facts
        and list(one.state) == list(other.state)
        and all(torch.equal(one.mask[name], other.mask[name]) for name in one.mask)
        and all(one.state[name].dtype == value.dtype for name, value in other.state.items())
        and all(one.state[name].numpy().tobytes() == value.numpy().tobytes() for name, value in other.state.items())
    )


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.12, 0.13, 0.5, 1.0])
def test_a_network_comes_back_bit_for_bit(density):
    network = sparse(density)
    assert equal(decode(encode(network)), network)


def test_special_values_come_back_bit_for_bit():
    values = torch.tensor([[0.0, -0.0, torch.inf], [torch.nan, 1e-45, -1.5]])
    network = Sparse({}, {"w": values, "empty": torch.zeros(0, 3), "flag": torch.tensor([True, False])}, {})
    assert equal(decode(encode(network)), network)


def test_the_bytes_are_laid_out_as_documented():
    # four weights, the second and the fourth remain: bits 0101 0000; values 1.0 and -2.0 as little-endian planes
    weight = torch.tensor([[9.0, 1.0], [9.0, -2.0]])
    mask = {"w": torch.tensor([[False, True], [False, True]])}
    content = encode(Sparse(mask, {"w": weight}, {"a": 1}))
    magic, version, checksum, length = PREFIX.unpack_from(content)
    assert (magic, version) == (MAGIC, VERSION) == (b"TKLT", 1)
    assert checksum == zlib.crc32(content[10:])
    body = zlib.decompress(content[18:])
    assert len(body) == length
    (size,) = struct.unpack_from("<I", body)
    assert json.loads(body[4 : 4 + size]) == {
        "facts": {"a": 1},
        "tensors": [["w", [2, 2], "float32", "float32", "bits"]],
    }
    assert body[4 + size :] == bytes([0b01010000]) + bytes([0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x3F, 0xC0])


def test_long_gaps_are_written_in_steps_of_255():
    kept = torch.zeros(1, 1000, dtype=torch.bool)
    kept[0, [0, 255, 600, 999]] = True  # gaps 0, 254, 344 = 255 + 89, 398 = 255 + 143
    content = encode(Sparse({"w": kept}, {"w": torch.ones(1, 1000)}, {}))
    body = zlib.decompress(content[18:])
    (size,) = struct.unpack_from("<I", body)
    assert json.loads(body[4 : 4 + size])["tensors"][0][4] == 6
    assert list(body[4 + size : 10 + size]) == [0, 254, 255, 89, 255, 143]
    assert torch.equal(decode(content).mask["w"], kept)


def test_int8_values_are_within_half_a_step_and_zeros_stay_zeros():
    network = sparse(0.5)
    found = decode(encode(network, "int8"))
    weight, before = found.state["fc.weight"], network.state["fc.weight"]
    step = before.abs().amax(1, keepdim=True) / 127
    assert bool(((weight - before).abs() <= step / 2 + 1e-7).all())
    assert bool((weight[~network.mask["fc.weight"]] == 0).all())
    assert torch.equal(found.state["fc.bias"], network.state["fc.bias"])


def test_float16_values_are_the_nearest_ones():
    network = sparse(0.5)
    found = decode(encode(network, "float16")).state["fc.weight"]
    assert torch.equal(found, network.state["fc.weight"].half().float())


def test_int8_scales_come_before_the_values_as_planes():
    # rows with the largest values 127 and 254: scales 1.0 and 2.0; 254 is stored as 127, 2 as 1, 1 as 0 or 1
    content = encode(Sparse({}, {"w": torch.tensor([[127.0, 3.0], [254.0, -2.0]])}, {}), "int8")
    body = zlib.decompress(content[18:])
    (size,) = struct.unpack_from("<I", body)
    scales = [0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x3F, 0x40]
    assert list(body[4 + size :]) == [*scales, 127, 3, 127, 255]


def test_int8_rows_too_small_for_a_scale_become_zero():
    small = torch.tensor([[1e-37, -1e-38], [0.0, 0.0], [1e-30, -1e-30]])
    found = decode(encode(Sparse({}, {"w": small}, {}), "int8")).state["w"]
    assert found[:2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert found[2].tolist() == pytest.approx([1e-30, -1e-30], rel=1e-6)


@pytest.mark.parametrize("mask", [{"v": torch.ones(2, 2).bool()}, {"w": torch.ones(2).bool()}])
def test_a_mask_that_fits_no_tensor_is_refused(mask):
    with pytest.raises(FormatError, match="fits no tensor"):
        encode(Sparse(mask, {"w": torch.ones(2, 2)}, {}))


def test_a_network_that_no_reader_would_take_is_not_written():
    with pytest.raises(FormatError, match="safetensors"):
        encode(Sparse({}, {"w": torch.zeros(1).expand(LIMIT // 4 + 1)}, {}))


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(FormatError, match=r"w has values that float16 cannot hold"):
        encode(Sparse({}, {"w": torch.full((1, 2), 1e6)}, {}), "float16")
    with pytest.raises(FormatError, match="not finite"):
        encode(Sparse({}, {"w": torch.full((1, 2), torch.inf)}, {}), "int8")
    with pytest.raises(FormatError, match="complex64"):
        encode(Sparse({}, {"w": torch.zeros(1, dtype=torch.complex64)}, {}))


def test_a_known_mask_is_left_out_and_must_be_the_same():
    network = sparse(0.5)
    content = encode(network, is_known=True)
    assert equal(decode(content, known=network.mask), network)
    saved = len(encode(network)) - len(content)
    assert saved > 50  # 125 bytes of mask, but for the digest's 64 letters
    for known in (None, {}, {"fc.weight": ~network.mask["fc.weight"]}, {"fc.weight": network.mask["fc.weight"].T}):
        with pytest.raises(UnknownMask):
            decode(content, known=known)


def test_the_digest_of_a_mask_is_that_of_names_shapes_and_bits():
    mask = {"b": torch.tensor([[True, False]]), "a": torch.tensor([[True] * 9])}
    parts = b'["a", [1, 9]]' + bytes([0xFF, 0x80]) + b'["b", [1, 2]]' + bytes([0x80])
    assert mask_digest(mask) == hashlib.sha256(parts).hexdigest() == mask_digest(dict(reversed(mask.items())))


def test_a_header_that_counts_on_a_mask_and_names_none_is_an_error():
    with pytest.raises(FormatError, match="which mask"):
        decode(sealed(body_of({"facts": {}, "tensors": [entry(coding="known")]}, b"")))
    mask = {"w": torch.ones(2, 2).bool()}
    header = {"facts": {}, "tensors": [entry(shape=(4, 1), coding="known")], "mask": mask_digest(mask)}
    with pytest.raises(FormatError, match="another shape"):
        decode(sealed(body_of(header, b"\0" * 16)), known=mask)


# --- nothing is trusted


def test_every_cut_and_flipped_bits_are_an_error():
    content = encode(sparse(0.1))
    for length in range(len(content)):
        with pytest.raises(FormatError):
            decode(content[:length])
    flipper = np.random.default_rng(0)
    for place in flipper.integers(0, len(content), 400):
        damaged = bytearray(content)
        damaged[place] ^= 1 << flipper.integers(8)
        with pytest.raises(FormatError):
            decode(bytes(damaged))
    with pytest.raises(FormatError):
        decode(content + b"\0")


def test_other_versions_say_which():
    content = bytearray(encode(sparse()))
    content[4] = 9
    with pytest.raises(FormatError, match="version 9; this ticketlab reads version 1"):
        decode(bytes(content))


def sealed(body, length=None):
    """A body with a prefix that is right about it."""
    rest = struct.pack("<Q", len(body) if length is None else length) + zlib.compress(body)
    return struct.pack("<4sHI", MAGIC, VERSION, zlib.crc32(rest)) + rest


def body_of(header, rest=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + rest


def entry(name="w", shape=(2, 2), dtype="float32", stored="float32", coding=None):
    return [name, list(shape), dtype, stored, coding]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "ends too early"),
        (body_of(b"not json"), "header"),
        (body_of(b"[" * 100_000), "header"),
        (body_of({"facts": {}}), "header"),
        (body_of({"facts": [], "tensors": []}), "header"),
        (body_of({"facts": {}, "tensors": [entry(), entry()]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(shape=(-1, 2))]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(shape=(1.5,))]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(shape=[1] * 9)]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(dtype="object")]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(stored="int64")]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(shape=(4,), stored="int8")]}), "header"),
        (body_of({"facts": {}, "tensors": [entry(coding="gzip")]}), "header"),
        (body_of({"facts": {}, "tensors": [entry()]}, b"\0" * 15), "ends too early"),
        (body_of({"facts": {}, "tensors": [entry()]}, b"\0" * 17), "left over"),
        (body_of({"facts": {}, "tensors": [entry(shape=(3, 8), coding=2)]}, b"\x03\xff"), "ends in no survivor"),
        (body_of({"facts": {}, "tensors": [entry(shape=(3, 8), coding=3)]}, b"\1\1\1"), "more bytes than bits"),
        (body_of({"facts": {}, "tensors": [entry(shape=(3, 8), coding=1)]}, b"\x18" + b"\0" * 4), "beyond its tensor"),
        (body_of({"facts": {}, "tensors": [entry(shape=(3, 1), coding="bits")]}, b"\x10"), "beyond its tensor"),
        (body_of({"facts": {}, "tensors": [entry(stored="int8")]}, b"\0\0\0\0\x80\0\xff\0" + b"\1" * 4), "scale"),
        (body_of({"facts": {}, "tensors": [entry(stored="int8")]}, b"\0\0\0\0\x80\0\xbf\0" + b"\1" * 4), "scale"),
        (body_of(("[" + "[]," * 400_000 + "0]").encode()), "header of"),
        (body_of({"facts": {}, "tensors": [entry(dtype="bool", stored="bool")]}, b"\0\1\2\0"), "neither 0 nor 1"),
        (body_of({"facts": {}, "tensors": [entry(shape=(2**40,), coding=0)]}), "more than"),
        (body_of({"facts": {}, "tensors": [entry(shape=(0, 2**40))]}), "more than"),
        (body_of({"facts": {}, "tensors": [entry(shape=[2**40] * 8)]}), "more than"),
    ],
)
def test_bytes_that_were_made_to_deceive_are_an_error(body, what):
    with pytest.raises(FormatError, match=what):
        decode(sealed(body))


def test_hostile_files_take_little_memory():
    """In a process of its own: what torch takes is seen by the system alone."""
    bodies = [
        body_of({"facts": {}, "tensors": [entry(shape=(1, 1), coding=90_000_000)]}, b"\xff" * 90_000_000),
        body_of(b"[" + b"[]," * 30_000_000 + b"0]"),
        body_of({"facts": {}, "tensors": [entry(shape=(2**26, 2), coding=0)]}),
        body_of({"facts": {}, "tensors": [entry(shape=(2**40,), coding=0)]}),
    ]
    code = (
        "import re, sys\nfrom ticketlab.codec import decode\nfrom ticketlab.errors import FormatError, UnknownMask\n"
        "def peak():\n    return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "before = peak()\nfor size in map(int, sys.argv[1:]):\n    content = sys.stdin.buffer.read(size)\n"
        "    try:\n        decode(content)\n        print('read')\n    except FormatError:\n        pass\n"
        "print(peak() - before)\n"
    )
    files = [sealed(body) for body in bodies]
    assert max(map(len, files)) < 120_000
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, map(len, files))], input=b"".join(files), capture_output=True, check=True
    )
    # the two long bodies themselves are unpacked, 90 million bytes each, and no more than that
    assert int(ran.stdout) < 250


def test_a_bomb_is_not_unpacked():
    bomb = sealed(b"\0" * 50_000_000)
    liar = sealed(b"\0" * 50_000_000, length=1000)
    assert len(bomb) < 60_000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more than 1,000,000"):
            decode(bomb, limit=1_000_000)
        with pytest.raises(FormatError, match="length is not what it says"):
            decode(liar, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_body_is_a_network_or_one_clear_error(data):
    """Bodies that were changed anywhere, with a prefix that is right again."""
    body = bytearray(zlib.decompress(encode(sparse(0.3))[18:]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    changed = bytes(body[:cut]) if data.draw(st.booleans()) else bytes(body)
    try:
        found = decode(sealed(changed), limit=1_000_000)
    except FormatError:
        return
    assert sum(value.nbytes for value in found.state.values()) <= 1_000_000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_one_clear_error(content):
    for given_bytes in (content, MAGIC + content, sealed(content)):
        with pytest.raises(FormatError):
            decode(given_bytes)
