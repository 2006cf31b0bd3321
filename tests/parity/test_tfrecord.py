"""TFRecord files against TensorFlow itself: `make test-parity`."""

import random
import struct
from pathlib import Path

import pytest

from src.data.tfrecord import TFRecordFile, parse_example, serialize_example, write_tfrecord

pytestmark = pytest.mark.parity
tf = pytest.importorskip("tensorflow", reason="needs TensorFlow: make test-parity")


def features(rng: random.Random) -> dict[str, list]:
    kinds = (
        lambda: rng.randbytes(rng.choice((0, 1, 127, 128, 20_000))),
        lambda: struct.unpack("<f", struct.pack("<f", rng.gauss(0, 1e3)))[0],
        lambda: rng.choice((0, 1, -1, 2**63 - 1, -(2**63), rng.getrandbits(40))),
    )
    return {f"f{n}ü": [make() for _ in range(rng.randint(0, 5))] for n in range(8) for make in [rng.choice(kinds)]}


def message(values: dict[str, list]) -> bytes:
    """Serialized by TensorFlow."""
    made = {}
    for name, some in values.items():
        if some and isinstance(some[0], bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=some))
        elif some and isinstance(some[0], float):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=some))
        else:
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=some))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


CASES = [features(random.Random(seed)) for seed in range(200)]


def test_read_what_tensorflow_writes(tmp_path: Path) -> None:
    data = [message(case) for case in CASES]
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for record in data:
            writer.write(record)
    records = TFRecordFile(tmp_path / "a.tfrecord")
    assert [records.read(number) for number in range(len(records))] == data
    assert [records.example(number) for number in range(len(records))] == CASES


def test_write_what_tensorflow_reads(tmp_path: Path) -> None:
    data = [message(case) for case in CASES]
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for record in data:
            writer.write(record)
    write_tfrecord(tmp_path / "b.tfrecord", data)
    assert (tmp_path / "a.tfrecord").read_bytes() == (tmp_path / "b.tfrecord").read_bytes()
    write_tfrecord(tmp_path / "c.tfrecord", map(serialize_example, CASES))
    for case, record in zip(CASES, tf.data.TFRecordDataset(str(tmp_path / "c.tfrecord")), strict=True):
        example = tf.train.Example.FromString(record.numpy())
        kinds = {name: feature.WhichOneof("kind") for name, feature in example.features.feature.items()}
        found = {
            name: list(getattr(example.features.feature[name], kind).value) if kind else []
            for name, kind in kinds.items()
        }
        assert found == case


def test_parse_single_example() -> None:
    case = {"overall_score": [0.75], "artifact_map": [bytes(range(256))], "prompt_misalignment_label": [b"0 1"]}
    kinds = {"overall_score": tf.float32, "artifact_map": tf.string, "prompt_misalignment_label": tf.string}
    parsed = tf.io.parse_single_example(
        serialize_example(case), {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    )
    assert {name: [value.numpy()] for name, value in parsed.items()} == case == parse_example(message(case))
