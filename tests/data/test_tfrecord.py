"""TFRecord files: bytes that TensorFlow has written, round trips, and every kind of damage."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.tfrecord import TFRecordFile, masked_crc, parse_example, serialize_example, write_tfrecord

# Written by TensorFlow 2.21: the record b"hi", and an Example with a = [b"hi", b""], b = [0.5, -2.0], c = [1, -1, 300].
EXAMPLE = bytes.fromhex(
    "0a3a0a0d0a016112080a060a0268690a000a110a0162120c120a0a080000003f000000c0"
    "0a160a016312111a0f0a0d01ffffffffffffffffff01ac02"
)
FILE = (
    bytes.fromhex("020000000000000078270b34686913d608563c00000000000000c8b7a352") + EXAMPLE + bytes.fromhex("180ff354")
)
FEATURES = {"a": [b"hi", b""], "b": [0.5, -2.0], "c": [1, -1, 300]}


def field(number: int, wire: int, content: bytes) -> bytes:
    length = bytes([len(content)]) if wire == 2 else b""
    return bytes([number << 3 | wire]) + length + content


def feature(content: bytes) -> bytes:
    """An Example of one feature, x."""
    return field(1, 2, field(1, 2, field(1, 2, b"x") + field(2, 2, content)))


@pytest.mark.parametrize(("data", "crc"), [(b"123456789", 0xE3069283), (b"\0" * 32, 0x8A9136AA), (b"", 0)])
def test_masked_crc_of_known_values(data, crc):
    rotated = int(f"{crc:032b}"[-15:] + f"{crc:032b}"[:-15], 2)
    assert masked_crc(data) == (rotated + 0xA282EAD8) % 2**32


def test_read_and_write_bytes_of_tensorflow(tmp_path):
    file = tmp_path / "a.tfrecord"
    file.write_bytes(FILE)
    records = TFRecordFile(file)
    assert [records.read(number) for number in (1, 0)] == [EXAMPLE, b"hi"]  # in any order
    assert records.example(1) == FEATURES
    assert records.offsets.tolist() == [0, 18]
    write_tfrecord(tmp_path / "b.tfrecord", [b"hi", serialize_example(FEATURES)])
    assert (tmp_path / "b.tfrecord").read_bytes() == FILE
    write_tfrecord(tmp_path / "empty.tfrecord", [])
    assert len(TFRecordFile(tmp_path / "empty.tfrecord")) == 0


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (field(2, 2, field(1, 5, struct.pack("<f", 0.5)) + field(1, 5, struct.pack("<f", 3))), [0.5, 3.0]),  # unpacked
        (field(2, 2, field(1, 2, struct.pack("<2f", 0.5, 3)) + field(1, 5, struct.pack("<f", 1))), [0.5, 3.0, 1.0]),
        (field(3, 2, field(1, 0, b"\x05") + field(1, 0, b"\xff" * 9 + b"\x01")), [5, -1]),
        (field(3, 2, field(1, 2, b"\x05\xac\x02")), [5, 300]),
        (field(1, 2, field(1, 2, b"a")) + field(1, 2, field(1, 2, b"b")), [b"a", b"b"]),  # one message in two parts
        (field(1, 2, field(1, 2, b"a")) + field(3, 2, field(1, 0, b"\x05")), [5]),  # the last of a oneof
        (field(9, 0, b"\x05") + field(1, 2, field(7, 5, b"1234") + field(1, 2, b"a")), [b"a"]),  # fields of the future
        (b"", []),
    ],
)
def test_packed_unpacked_and_merged_lists(content, values):
    assert parse_example(feature(content)) == {"x": values}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (EXAMPLE[:-1], "longer than its message"),
        (b"\x0a", "ends within a number"),
        (b"\x80" * 11, "longer than ten bytes"),
        (field(1, 3, b""), "unknown wire type 3"),
        (field(1, 0, b"\x05"), "a number stands in place of a message"),
        (feature(field(2, 2, field(1, 2, b"abc"))), "multiple of element size"),
        (feature(field(3, 2, field(1, 5, b"abcd"))), "an integer of another width"),
    ],
)
def test_invalid_examples_are_rejected(data, told):
    with pytest.raises(ValueError, match=told):
        parse_example(data)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.lists(st.binary(max_size=300), max_size=4)
        | st.lists(st.floats(width=32, allow_nan=False), max_size=4)
        | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        max_size=5,
    )
)
def test_example_round_trip(features):
    found = parse_example(serialize_example(features))
    assert found == features
    assert [type(v) for values in found.values() for v in values] == [type(v) for vs in features.values() for v in vs]


def test_truncation_at_every_byte(tmp_path):
    file = tmp_path / "a.tfrecord"
    for size in range(len(FILE)):
        file.write_bytes(FILE[:size])
        if size in (0, 18):  # between records
            assert len(TFRecordFile(file)) == bool(size)
            continue
        number, at = (1, 0) if size < 18 else (2, 18)
        told = rf"a\.tfrecord, record {number}, at byte {at}: the file ends after {size - at} bytes of it\.$"
        with pytest.raises(ValueError, match=told):
            TFRecordFile(file)
        records = TFRecordFile(file, strict=False)
        assert len(records) == number - 1
        assert f"record {number}, at byte {at}" in records.damage


def test_corruption_of_every_byte(tmp_path):
    file = tmp_path / "a.tfrecord"
    for changed in range(len(FILE)):
        data = bytearray(FILE)
        data[changed] ^= 0x10
        file.write_bytes(data)
        number, at = (1, 0) if changed < 18 else (2, 18)
        what = "length" if changed - at < 12 else "data"
        told = rf"a\.tfrecord, record {number}, at byte {at}: the checksum of its {what} is wrong\.$"
        with pytest.raises(ValueError, match=told):
            list(map(TFRecordFile(file).read, range(2)))


def test_missing_lfs_and_foreign_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"no\.tfrecord: file not found"):
        TFRecordFile(tmp_path / "no.tfrecord")
    (tmp_path / "a.tfrecord").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 158000000\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        TFRecordFile(tmp_path / "a.tfrecord")
    write_tfrecord(tmp_path / "b.tfrecord", [b"", b"no message"])
    records = TFRecordFile(tmp_path / "b.tfrecord")
    assert records.example(0) == {}
    with pytest.raises(ValueError, match=r"b\.tfrecord, record 2, at byte 16: no tf\.train\.Example \("):
        records.example(1)


def test_numpy_values_are_written_as_their_kind():
    found = parse_example(serialize_example({"f": [float(np.float32(0.1))], "i": [int(np.int64(7))]}))
    assert found == {"f": [float(np.float32(0.1))], "i": [7]}
