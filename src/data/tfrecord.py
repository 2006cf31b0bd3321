"""TFRecord files and the `tf.train.Example` messages in them, read and written without TensorFlow.

A record is its length (uint64), the length's masked CRC-32C (uint32), the data, and the data's masked CRC-32C, all
little-endian: https://www.tensorflow.org/tutorials/load_data/tfrecord. Messages are Protocol Buffers.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from src.runtime.files import atomic

Values = list[bytes] | list[float] | list[int]
HEADER = struct.Struct("<QI")
BYTES, FLOATS, INTS = 1, 2, 3  # fields of tf.train.Feature
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


class TFRecordFile:
    """The records of a file by number, from 0; errors count them from 1.

    Opening it reads the lengths only; checksums of the data are verified when a record is read. Raises ValueError
    naming file, record and byte for a record that is truncated or fails a checksum. strict=False: the file ends before
    a truncated record or a bad length, behind which nothing can be found; `damage` is the error, "" if there is none.
    """

    def __init__(self, path: Path, strict: bool = True) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: file not found.")
        self.path, self.damage = path, ""
        offsets, at, size = [], 0, path.stat().st_size
        with path.open("rb") as file:
            if file.read(23) == b"version https://git-lfs":
                raise ValueError(f"{path}: it is a pointer of Git LFS; `git lfs pull` fetches the file.")
            while at < size:
                file.seek(at)
                header = file.read(HEADER.size)
                if len(header) == HEADER.size and HEADER.unpack(header)[1] != masked_crc(header[:8]):
                    self.damage = self._told(len(offsets), at, "the checksum of its length is wrong")
                    break
                end = at + HEADER.size + HEADER.unpack(header)[0] + 4 if len(header) == HEADER.size else size + 1
                if end > size:
                    self.damage = self._told(len(offsets), at, f"the file ends after {size - at} bytes of it")
                    break
                offsets.append(at)
                at = end
        if self.damage and strict:
            raise ValueError(self.damage)
        self.offsets = np.array(offsets, np.int64)

    def _told(self, number: int, at: int, reason: str) -> str:
        return f"{self.path}, record {number + 1}, at byte {at}: {reason}."

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, number: int) -> bytes:
        """The data of a record."""
        at = int(self.offsets[number])
        with self.path.open("rb") as file:
            file.seek(at)
            length, _ = HEADER.unpack(file.read(HEADER.size))
            data, crc = file.read(length), file.read(4)
        if len(crc) < 4 or struct.unpack("<I", crc)[0] != masked_crc(data):
            raise ValueError(self._told(number, at, "the checksum of its data is wrong"))
        return data

    def example(self, number: int) -> dict[str, Values]:
        """The features of a record that is a `tf.train.Example`."""
        data = self.read(number)
        try:
            return parse_example(data)
        except ValueError as error:
            at = int(self.offsets[number])
            raise ValueError(self._told(number, at, f"no tf.train.Example ({error})")) from None


def write_tfrecord(path: Path, records: Iterable[bytes]) -> None:
    """Writes the file in one step."""
    with atomic(path) as part, part.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))


def masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated right by 15 bits, plus 0xa282ead8, modulo 2^32."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(data: bytes) -> dict[str, Values]:
    """The values of each feature of a serialized `tf.train.Example`. Raises ValueError if it is none."""
    features: dict[str, Values] = {}
    for group in _messages(memoryview(data), 1):
        for entry in _messages(group, 1):
            name = str(b"".join(_messages(entry, 1)[-1:]), "utf-8")
            features[name] = _values(memoryview(b"".join(_messages(entry, 2))))
    return features


def serialize_example(features: Mapping[str, Sequence[Any]]) -> bytes:
    """A `tf.train.Example` of lists of bytes, of float (stored as float32) or of int (64 bits); the type of the first
    value is that of the list.
    """
    entries = []
    for name, values in features.items():
        first = values[0] if values else None
        if isinstance(first, bytes):
            kind = _field(BYTES, b"".join(_field(1, value) for value in values))
        elif isinstance(first, float):
            kind = _field(FLOATS, _field(1, np.array(values, "<f4").tobytes()))
        else:
            numbers = b"".join(_as_varint(value & 0xFFFFFFFFFFFFFFFF) for value in values)
            kind = _field(INTS, _field(1, numbers)) if values else b""
        entries.append(_field(1, _field(1, name.encode()) + _field(2, kind)))
    return _field(1, b"".join(entries))


def _values(feature: memoryview) -> Values:
    """The values of a `tf.train.Feature`; lists of numbers may be packed or not."""
    values, last = [], 0
    for kind, _, part in _fields(feature):
        if kind not in (BYTES, FLOATS, INTS):
            continue
        values, last = (values if kind == last else []), kind
        for number, wire, value in _fields(_message(part)):
            if number != 1:
                continue
            if kind == BYTES:
                values.append(bytes(_message(value)))
            elif kind == FLOATS:
                values += np.frombuffer(_message(value), "<f4").tolist()
            else:
                values += map(_signed, _varints(_message(value)) if wire == LENGTH else [value])
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Number, wire type and value of each field: an int for a varint, else bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, wire, value
            continue
        if wire == LENGTH:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, wire, message[at : at + size]
        at += size


def _messages(message: memoryview, number: int) -> list[memoryview]:
    return [_message(value) for field, _, value in _fields(message) if field == number]


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands in place of a message")
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(data):
            raise ValueError("it ends within a number")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than ten bytes")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _signed(value: memoryview | int) -> int:
    if not isinstance(value, int):
        raise ValueError("an integer of another width")
    return (value & 0xFFFFFFFFFFFFFFFF) - ((value >> 63 & 1) << 64)


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _field(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | LENGTH) + _as_varint(len(content)) + content
