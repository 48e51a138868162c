"""The event file, read back by protobuf and by plain unpacking of its frame."""

import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from emojax.training.event_file import crc32c, event_file

HISTORY = [
    {"epoch": 1, "loss": 1.5, "validation_accuracy": 0.25, "seconds": 30.0},
    {"epoch": 200, "loss": -0.5, "validation_accuracy": 0.5, "seconds": 12.0},
]


def event_type():
    """`Event` with the fields of TensorBoard's event.proto and summary.proto that matter here."""
    kinds = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Value": [("tag", 1, kinds.TYPE_STRING), ("simple_value", 2, kinds.TYPE_FLOAT)],
        "Summary": [("value", 1, ".Value")],
        "Event": [
            ("wall_time", 1, kinds.TYPE_DOUBLE),
            ("step", 2, kinds.TYPE_INT64),
            ("file_version", 3, kinds.TYPE_STRING),
            ("summary", 5, ".Summary"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", syntax="proto3")
    for name, own in messages.items():
        message = file.message_type.add(name=name)
        for field, number, kind in own:
            many = kinds.LABEL_REPEATED if field == "value" else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=many)
            if isinstance(kind, str):
                added.type, added.type_name = kinds.TYPE_MESSAGE, kind
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))


def read_events(content: bytes) -> list:
    """The events of a file; every checksum is compared with TFRecord's definition."""
    events = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        record, rest = content[12 : 12 + length], content[12 + length :]
        for data, kept in ((content[:8], content[8:12]), (record, rest[:4])):
            masked = struct.unpack("<I", kept)[0]
            rotated = (masked - 0xA282EAD8) % 2**32
            assert (rotated >> 17 | rotated << 15) % 2**32 == crc32c(data)
        events.append(event_type().FromString(record))
        content = rest[4:]
    return events


def test_the_checksum_is_crc32c():
    """The check value of the catalogue, and that of 32 zeros in RFC 3720."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_events_are_the_rows():
    first, *events = read_events(event_file(HISTORY, ended=1000.0))
    assert first.file_version == "brain.Event:2"
    assert [event.wall_time for event in (first, *events)] == [958.0, 988.0, 1000.0]
    assert [event.step for event in events] == [1, 200]
    for event, row in zip(events, HISTORY, strict=True):
        read = {value.tag: value.simple_value for value in event.summary.value}
        assert read == {name: row[name] for name in ("loss", "validation_accuracy")}


def test_a_long_name_and_no_rows():
    name = "m" * 300  # its length takes two bytes
    event = read_events(event_file([{"epoch": 3, name: 0.1}], ended=1.0))[1]
    assert event.summary.value[0].tag == name
    assert event.summary.value[0].simple_value == pytest.approx(0.1, rel=1e-7)
    assert len(read_events(event_file([], ended=1.0))) == 1
