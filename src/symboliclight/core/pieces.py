"""The file of a SentencePiece model, a protobuf message (sentencepiece_model.proto), without a protobuf library."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """Types of pieces."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def proto_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message; nested messages and strings as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            shift += 7
            at += 1
            if message[at - 1] < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, message[at:at + size]
        at += size


def markers(model: bytes) -> list[str]:
    """Pieces that a text never wears down: user-defined ones of several characters, such as `<|user|>`."""
    return [entry[1].decode() for entry in _entries(model) if _is_marker(entry)]


def without_markers(model: bytes) -> bytes:
    """The same model, with the same ids, to which the text of a marker is text: it is spelt in other pieces."""
    out = bytearray()
    for number, value in proto_fields(model):
        if number == 1 and _is_marker(dict(proto_fields(value))):
            value += bytes([3 << 3, Kind.UNUSED])  # a field that comes twice has its last value
        out += bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes(out)


def _entries(model: bytes) -> Iterator[dict[int, Any]]:
    return (dict(proto_fields(value)) for number, value in proto_fields(model) if number == 1)


def _is_marker(entry: dict[int, Any]) -> bool:
    return entry.get(3) == Kind.USER_DEFINED and len(entry[1].decode()) > 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
