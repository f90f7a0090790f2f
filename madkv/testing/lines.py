"""The line interface as its caller sees it: lines to send, and what the replies say."""

from typing import NamedTuple

from madkv.testing.history import Kind, Result


class Call(NamedTuple):
    """One call; a SCAN keeps its start in `key` and its end in `value`."""

    kind: Kind
    key: bytes
    value: bytes | None = None


class MalformedReply(Exception):
    """A reply that is none to this call."""


def line(call: Call) -> bytes:
    """What to send, without the end of the line."""
    text = call.kind.encode() + b" " + call.key
    return text if call.value is None else text + b" " + call.value


def parse(call: Call, reply: bytes, mark: bytes = b"") -> Result:
    """What a reply (without its last end of line) says; MalformedReply when it does not answer this very call.

    `mark` stands in each of the caller's own keys. What a Scan answers without it was stored by others and may hold
    spaces and ends of lines, so such rows need not be pairs; but nobody else's key lies in a range all of whose keys
    hold the mark, and there each row must be one.
    """
    if call.kind == "SCAN":
        return _parse_scan(call, reply, mark)
    head = call.kind.encode() + b" " + call.key + b" "
    if not reply.startswith(head):
        raise MalformedReply(f"{show(line(call))} was answered {show(reply)}")
    word = reply[len(head) :]
    if call.kind in ("PUT", "DELETE"):
        if word not in (b"found", b"not_found"):
            raise MalformedReply(f"{show(line(call))} was answered {show(reply)}, neither found nor not_found")
        return word == b"found"
    if len(word.split()) != 1 or word.strip() != word:
        raise MalformedReply(f"{show(line(call))} was answered {show(reply)}, which does not end in one value")
    return None if word == b"null" else word


def _parse_scan(call: Call, reply: bytes, mark: bytes) -> Result:
    first, *rest = reply.split(b"\n")
    if first != line(call) + b" BEGIN" or not rest or rest[-1] != b"SCAN END":
        raise MalformedReply(f"{show(line(call))} was answered {show(reply)}")
    assert call.value is not None
    marked_to = call.key.find(mark) + len(mark)
    meets_others = mark not in call.key or not call.value.startswith(call.key[:marked_to])
    pairs = []
    for row in rest[:-1]:
        words = row.split(b" ")
        if len(words) != 4 or words[0] or words[1] or not words[2] or not words[3]:
            if meets_others and mark not in row:
                continue
            raise MalformedReply(f"{show(line(call))} was answered with the line {show(row)}")
        pairs.append((words[2], words[3]))
    return tuple(pairs)


def show(data: bytes, first_bytes: int = 80, last_bytes: int = 40) -> str:
    """Bytes for people, on one line: the beginning and the end of what is longer than both together."""
    if len(data) <= first_bytes + last_bytes:
        return _plain(data)
    return f"{_plain(data[:first_bytes])}…{_plain(data[len(data) - last_bytes :])} ({len(data):,} bytes)"


def _plain(data: bytes) -> str:
    text = data.decode("ascii", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
