"""Training metrics as TensorBoard reads them: an event file, a scalar per metric and epoch.

The file is a row of records in TFRecord's frame (length, checksum, bytes, checksum), each an
`Event` of TensorBoard's event.proto. Its five fields are written here, as what writes them
elsewhere is TensorFlow, or a package of a hundred times this size.
"""

import functools
import struct
from collections.abc import Mapping, Sequence

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected


def event_file(history: Sequence[Mapping[str, int | float]], ended: float) -> bytes:
    """The content of a file of events: the rows of a training log, by their `epoch`.

    `seconds` of each row make the time of its events, the last of them at `ended` (seconds since
    1970).
    """
    left = sum(row.get("seconds", 0) for row in history)
    records = [_event(ended - left) + _bytes(3, b"brain.Event:2")]
    for row in history:
        left -= row.get("seconds", 0)
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in row.items()
            if name not in ("epoch", "seconds")
        )
        step = b"\x10" + _varint(int(row["epoch"]))
        records.append(_event(ended - left) + step + _bytes(5, values))
    return b"".join(map(framed, records))


def _event(time: float) -> bytes:
    return b"\x09" + struct.pack("<d", time)


def _bytes(field: int, content: bytes) -> bytes:
    """A field of text or of a message: its tag, its length, its content."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def framed(record: bytes) -> bytes:
    """A record in TFRecord's frame."""
    length = struct.pack("<Q", len(record))
    return length + _masked(length) + record + _masked(record)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The checksum CRC-32C, which Python does not bring."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _table()[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    table = range(256)
    for _ in range(8):
        table = [value >> 1 ^ (_POLYNOMIAL if value & 1 else 0) for value in table]
    return tuple(table)
