import struct
from pathlib import Path

from training.tensorboard import EventFile, crc32c


def unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(path: Path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        (length_check,) = struct.unpack("<I", data[8:12])
        payload = data[12 : 12 + length]
        (check,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert unmask(length_check) == crc32c(data[:8])
        assert unmask(check) == crc32c(payload)
        found.append(payload)
        data = data[16 + length :]
    return found


def fields(message: bytes) -> dict[int, list[object]]:
    """A protobuf message by field number: the ten lines of a reader."""
    found: dict[int, list[object]] = {}

    def varint() -> int:
        nonlocal message
        value = shift = 0
        while True:
            byte, message = message[0], message[1:]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while message:
        key = varint()
        size = {1: 8, 5: 4}.get(key & 7) or (varint() if key & 7 == 2 else 0)
        value: object = varint() if key & 7 == 0 else message[:size]
        message = message[size:]
        found.setdefault(key >> 3, []).append(value)
    return found


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_scalars_come_back_with_step_and_time(tmp_path: Path) -> None:
    with EventFile(tmp_path / "run", step=300, clock_s=lambda: 1.5e9) as file:
        file.write(310, {"loss": 0.25, "l0": 32.0})
        (path,) = (tmp_path / "run").iterdir()
        version, session, scalars = map(fields, records(path))
    assert path.name == "events.out.tfevents.1500000000.000001"
    assert version[3] == [b"brain.Event:2"]
    # A session that starts at step 301: readers forget what older files say from there on.
    assert session[2] == [301]
    assert fields(session[7][0]) == {1: [1]}  # type: ignore[arg-type]
    assert scalars[2] == [310]
    assert scalars[1] == [struct.pack("<d", 1.5e9)]
    values = [fields(value) for value in fields(scalars[5][0])[1]]  # type: ignore[arg-type]
    assert values == [{1: [b"loss"], 2: [struct.pack("<f", 0.25)]}, {1: [b"l0"], 2: [struct.pack("<f", 32.0)]}]


def test_a_resumed_run_adds_a_file(tmp_path: Path) -> None:
    for step in (0, 10):
        with EventFile(tmp_path, step=step, clock_s=lambda: 1.5e9):
            pass
    assert len(list(tmp_path.iterdir())) == 2
