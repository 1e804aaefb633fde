"""SNMP v2c on the wire: one GET of fixed OIDs, built once, and what is answered to it.

A device is asked every second for days, and building and parsing each message by general means
takes a library a hundred times as long. Here the request is made once and only its number changes;
of ASN.1's encoding (BER) an answer needs lengths, whole numbers, texts and OIDs. RFC 3416 has the
message, RFC 2578 the types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SnmpValue = int | str | None
"""A number, a text, or None for what the agent does not have."""
SEQUENCE, INTEGER, OCTET_STRING, NULL, OID = 0x30, 0x02, 0x04, 0x05, 0x06
GET_REQUEST, RESPONSE = 0xA0, 0xA2
V2C = 1
UNSIGNED = (0x41, 0x42, 0x43, 0x46)
"""Counter32, Gauge32, TimeTicks, Counter64."""
ABSENT = (0x80, 0x81, 0x82)
"""noSuchObject, noSuchInstance, endOfMibView."""
STATUS = (
    "noError", "tooBig", "noSuchName", "badValue", "readOnly", "genErr", "noAccess", "wrongType",
    "wrongLength", "wrongEncoding", "wrongValue", "noCreation", "inconsistentValue",
    "resourceUnavailable", "commitFailed", "undoFailed", "authorizationError", "notWritable",
    "inconsistentName",
)  # fmt: skip


@dataclass(frozen=True)
class SnmpAnswer:
    """status: a name of ``STATUS``. at: which OID it is of, from 1. values: OID -> its value."""

    number: int
    status: str
    at: int
    values: dict[str, SnmpValue]


class GetRequest:
    """Of ``oids``, in one message."""

    def __init__(self, community: str, oids: Sequence[str]) -> None:
        asked = b"".join(_field(SEQUENCE, _oid(oid) + _field(NULL, b"")) for oid in oids)
        number = bytes(4)
        rest = _whole(0) + _whole(0) + _field(SEQUENCE, asked)
        request = _field(GET_REQUEST, _field(INTEGER, number) + rest)
        head = _whole(V2C) + _field(OCTET_STRING, community.encode())
        message = _field(SEQUENCE, head + request)
        at = len(message) - len(rest) - len(number)
        self._before, self._after = message[:at], message[at + len(number) :]

    def numbered(self, number: int) -> bytes:
        """The message; number: under 2**31, which its answer repeats."""
        return self._before + number.to_bytes(4, "big") + self._after


def answer_of(message: bytes) -> SnmpAnswer:
    """Raises ValueError for what is no answer of v2c."""
    ((tag, whole),) = _fields(message)
    _require(tag == SEQUENCE)
    (_, version), (_, _), (tag, response) = _fields(whole)
    _require(int.from_bytes(version, "big") == V2C and tag == RESPONSE)
    (_, number), (_, status), (_, at), (tag, pairs) = _fields(response)
    values: dict[str, SnmpValue] = {}
    for _, pair in _fields(pairs):
        (tag, oid), (kind, content) = _fields(pair)
        _require(tag == OID)
        values[_oid_text(oid)] = _value(kind, content)
    code = int.from_bytes(status, "big")
    name = STATUS[code] if code < len(STATUS) else f"error {code}"
    return SnmpAnswer(int.from_bytes(number, "big"), name, int.from_bytes(at, "big"), values)


def _value(kind: int, content: bytes) -> SnmpValue:
    if kind in ABSENT:
        return None
    if kind == INTEGER or kind in UNSIGNED:
        return int.from_bytes(content, "big", signed=kind == INTEGER)
    return content.decode("latin-1")


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of what follows one another."""
    at = 0
    while at < len(content):
        _require(at + 2 <= len(content))
        tag, length = content[at], content[at + 1]
        at += 2
        if length & 0x80:
            more = length & 0x7F
            length = int.from_bytes(content[at : at + more], "big")
            at += more
        _require(at + length <= len(content))
        yield tag, content[at : at + length]
        at += length


def _field(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def _whole(number: int) -> bytes:
    """Of 0 to 127."""
    return _field(INTEGER, bytes((number,)))


def _oid(text: str) -> bytes:
    first, second, *rest = (int(part) for part in text.split("."))
    content = b""
    for part in (40 * first + second, *rest):
        groups = [part & 0x7F]
        while part := part >> 7:
            groups.append(0x80 | part & 0x7F)
        content += bytes(reversed(groups))
    return _field(OID, content)


def _oid_text(content: bytes) -> str:
    parts, part = [], 0
    for byte in content:
        part = part << 7 | byte & 0x7F
        if not byte & 0x80:
            parts.append(part)
            part = 0
    _require(bool(parts))
    first = min(parts[0] // 40, 2)
    return ".".join(map(str, (first, parts[0] - 40 * first, *parts[1:])))


def _require(right: bool) -> None:
    if not right:
        raise ValueError("it is no answer of SNMP v2c")
