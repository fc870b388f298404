"""TFRecord files compared with those that TensorFlow writes and reads."""

from __future__ import annotations

import struct

from pipelines.records import Record, compute_checksum
from pipelines.shards.tfrecord import read_index, write_tfrecord

RECORDS = [
    Record(b"one", 1, "a b/ä.png", (1, 3, 1)),
    Record(bytes(range(256)) * 300, 2**31 - 1, "b", (150, 512, 1), bbox=(0.0, 0.25, 0.5, 1.0)),
    Record(b"three" * 25, 200, "c" * 300, (25, 5, 300)),
    Record(b"", 0, "", (0, 0, 0)),
]


def test_the_bytes_are_those_tensorflow_writes(tmp_path):
    import tensorflow as tf

    def feature(**values) -> tf.train.Feature:
        ((kind, value),) = values.items()
        types = {
            "bytes_list": tf.train.BytesList,
            "int64_list": tf.train.Int64List,
            "float_list": tf.train.FloatList,
        }
        return tf.train.Feature(**{kind: types[kind](value=value)})

    with tf.io.TFRecordWriter(str(tmp_path / "expected")) as writer:
        for record in RECORDS:
            features = {
                "image": feature(bytes_list=[record.image]),
                "label": feature(int64_list=[record.label]),
                "id": feature(bytes_list=[record.id.encode()]),
                "shape": feature(int64_list=record.shape),
                "evidence": feature(float_list=record.bbox or ()),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString(deterministic=True))
    write_tfrecord(tmp_path / "s.tfrecord", tmp_path / "s.index.arrow", iter(RECORDS))
    assert (tmp_path / "s.tfrecord").read_bytes() == (tmp_path / "expected").read_bytes()


def test_tensorflow_reads_the_file_as_documented(tmp_path):
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "id": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenFeature([3], tf.int64),
        "evidence": tf.io.VarLenFeature(tf.float32),
    }
    assert write_tfrecord(tmp_path / "s.tfrecord", tmp_path / "s.index.arrow", RECORDS) == 4
    dataset = tf.data.TFRecordDataset(str(tmp_path / "s.tfrecord")).map(
        lambda record: tf.io.parse_single_example(record, features)
    )
    rows = list(dataset.as_numpy_iterator())
    assert [(row["image"], row["label"], row["id"].decode(), tuple(row["shape"])) for row in rows] == [
        (record.image, record.label, record.id, record.shape) for record in RECORDS
    ]
    assert [row["evidence"].tolist() for row in rows] == [list(record.bbox or ()) for record in RECORDS]


def test_the_index_holds_the_positions_of_the_images(tmp_path):
    write_tfrecord(tmp_path / "s.tfrecord", tmp_path / "s.index.arrow", RECORDS)
    data = (tmp_path / "s.tfrecord").read_bytes()
    columns, _ = read_index(tmp_path / "s.index.arrow", len(data))
    start = 0
    payloads = []
    while start < len(data):  # from record to record by their lengths
        (length,) = struct.unpack_from("<Q", data, start)
        payloads.append(range(start + 12, start + 12 + length))
        start += 16 + length
    for row, (record, payload) in enumerate(zip(RECORDS, payloads, strict=True)):
        start = int(columns.starts[row])
        stop = start + int(columns.sizes[row])
        assert payload.start <= start <= stop <= payload.stop
        assert data[start:stop] == record.image
        assert columns.checksums[row] == compute_checksum(record.image, record.label)


def test_equal_records_give_equal_bytes(tmp_path):
    for name in "ab":
        write_tfrecord(tmp_path / f"{name}.tfrecord", tmp_path / f"{name}.index.arrow", RECORDS)
    for suffix in (".tfrecord", ".index.arrow"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
