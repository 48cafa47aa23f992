"""TensorBoard event files of a run's curve, written without TensorBoard; knows nothing of training.

The file is a series of records (length, checksum, payload, checksum), each payload a protobuf `Event`. Only the few
fields that a scalar needs are written, so neither TensorBoard nor protobuf is needed here. Format: TensorFlow's
`tfrecord` and `event.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

_VERSION = b"brain.Event:2"
_SESSION_START = 1
_CRC32C_POLYNOMIAL = 0x82F63B78


class EventFile:
    """One event file, open for more scalars."""

    def __init__(self, folder: Path, *, step: int, clock_s: Callable[[], float]) -> None:
        """Begin a new file in `folder`; readers forget what older files there say of steps after `step`.

        Args:
            folder: of one run; made where it is missing.
            step: where the run goes on from.
            clock_s: seconds since 1970.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._clock_s = clock_s
        # Readers take files in the order of their names, and the time in a name has ten digits.
        number = 1 + sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._file = (folder / f"events.out.tfevents.{int(clock_s()):010d}.{number:06d}").open("xb")
        self._write(_bytes_field(3, _VERSION), step=0)
        self._write(_bytes_field(7, _varint_field(1, _SESSION_START)), step=step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add scalars of one step; a reader sees them at once."""
        values = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + _float_field(2, value)) for tag, value in scalars.items()
        )
        self._write(_bytes_field(5, values), step=step)

    def _write(self, payload: bytes, *, step: int) -> None:
        event = _double_field(1, self._clock_s()) + _varint_field(2, step) + payload
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CRC32C_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_CRC32C_TABLE = _table()


def _varint(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double_field(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _float_field(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)
