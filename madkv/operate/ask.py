"""Questions to nodes: one to one, on a socket of its own, such as how it is; or to many, until one has answered."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from madkv.addresses import Address, parse_address
from madkv.errors import Interrupted, MadKVError, ProtocolError, Refused, TLSError
from madkv.operate.nodes import is_node
from madkv.partitions import PartitionMap
from madkv.tls import TLSFiles, tls_files
from madkv.wire import codec
from madkv.wire.boxes import Box, join_blob, parse_boxes

ASK_SECONDS = 1.0
"""How long a node may take; one that was stopped takes for ever."""
READ_BYTES = 1 << 16
ASKED_AT_ONCE = 64
LOOK_SECONDS_MAX = 15.0
"""How long to look for the leader of a group: an election takes a second or two."""
PAUSE_SECONDS = 0.2

T = TypeVar("T")

Status = dict[str, Any]
_NUMBERS = ("term", "commit", "applied", "data_bytes")
_TEXTS = ("node", "role", "version", "waiting", "cluster")
_SLOT = ("disk", "state", "address")


def ask(
    address: str,
    command: bytes,
    fields: bytes = b"",
    files: TLSFiles | None = None,
    seconds_max: float = ASK_SECONDS,
) -> Box:
    """The answer to a command; `fields` are its arguments, encoded. Raises OSError and MadKVError; TimeoutError when it
    is not all there after `seconds_max`, whatever has come.

    `files` are those of TLS; None: those that the environment names, if it does.
    """
    deadline = time.monotonic() + seconds_max
    with _connected(parse_address(address), files) as sock:
        sock.sendall(codec.request(1, command, fields))
        boxes: list[Box] = []
        data = b""
        while not boxes:
            # What came while this process had no turn is taken, however late that is.
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            piece = sock.recv(READ_BYTES)
            if not piece:
                raise ConnectionResetError(f"{address} closed the connection")
            data += piece
            parse_boxes(data, boxes)
            if not boxes and time.monotonic() >= deadline:
                raise TimeoutError("no answer in time")
    codec.raise_if_error(boxes[0], command)
    return boxes[0]


class Stranger(ProtocolError):
    """Somebody else is where a node should be."""


def ask_hello(address: str, files: TLSFiles | None = None) -> Box:
    """Who a node is. Raises as `ask`."""
    return ask(address, codec.HELLO, codec.integer(b"version", codec.PROTOCOL_VERSION), files)


def ask_in_turn(problem: str, addresses: Sequence[str], question: Callable[[str], T]) -> T:
    """What the first of a group's nodes says that answers `question`, as its leader does.

    They are asked again for LOOK_SECONDS_MAX, since a group may have no leader at the moment, but not when they are all
    strangers, who are no nodes of it. Then raises MadKVError, with the `problem` and what each has said; and at once
    whatever another try does not help against.
    """
    ends = time.monotonic() + LOOK_SECONDS_MAX
    while True:
        said: list[str] = []
        strangers = 0
        for address in addresses:
            try:
                return question(address)
            except (Refused, Interrupted, OSError, ProtocolError) as error:
                said.append(f"{address}: {error}")
                strangers += isinstance(error, ProtocolError) and not isinstance(error, TLSError)
        if strangers == len(addresses) or time.monotonic() >= ends:
            raise MadKVError(f"{problem}: {'; '.join(said)}")
        time.sleep(PAUSE_SECONDS)


def check_files() -> None:
    """Raise InvalidArgument when TLS's files are of no use: to each question there would be no answer but silence."""
    files = tls_files(None, None, None, os.environ)
    if files is not None:
        from madkv.client.secure import context_of

        context_of(files)


def _connected(address: Address, files: TLSFiles | None) -> socket.socket:
    """With TLS where the environment has it, or there are files. Raises OSError and MadKVError."""
    files = files or tls_files(None, None, None, os.environ)
    sock = socket.create_connection(address, ASK_SECONDS)
    if files is None:
        return sock
    from madkv.client.secure import secured

    return secured(sock, files, address)


def _blob(address: str, command: bytes, name: bytes, files: TLSFiles | None) -> bytes:
    value = join_blob(ask(address, command, files=files), name)
    if value is None:
        raise ProtocolError(f"{address}: an answer without {name.decode()!r}")
    return value


def ask_status(address: str, files: TLSFiles | None = None) -> Status | None:
    """How a node says it is; None when it does not answer, or not as a node does."""
    try:
        return read_status(_blob(address, codec.STATUS, b"status", files))
    except (OSError, MadKVError):
        return None


def read_status(text: bytes) -> Status | None:
    """What a node says of itself, None for what no node says: numbers are numbers, and names can be shown."""
    try:
        status = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(status, dict):
        return None
    numbers = [status[name] for name in _NUMBERS if name in status]
    texts = [status[name] for name in _TEXTS if name in status]
    slots = status.get("nodes", {})
    for name, slot in slots.items() if isinstance(slots, dict) else ((None, None),):
        texts += [name, *(slot.get(part) for part in _SLOT)] if isinstance(slot, dict) else [None]
    if status.get("leader") is not None:
        numbers.append(status["leader"])
    is_whole = "term" in status or status.get("role") != "leader"
    is_one = all(type(number) is int for number in numbers) and is_whole and ("applied" in status or not slots)
    if not is_one or not all(isinstance(text, str) and text.isprintable() for text in texts):
        return None
    return status if all(is_node(name) for name in slots) else None


def why_silent(addresses: Iterable[str], command: bytes = codec.STATUS) -> str:
    """What is wrong with the first of these nodes that is there, for the end of a line; empty if none of them is."""
    for address in addresses:
        try:
            ask(address, command)
        except (MadKVError, socket.gaierror) as error:
            return f": {error}"
        except OSError:
            continue
    return ""


def ask_at_once(addresses: Iterable[str], question: Callable[[str], T]) -> list[T]:
    """What all of them say, in their order, who are asked at the same time."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(question, addresses))


def ask_statuses(addresses: Iterable[str], files: TLSFiles | None = None) -> list[Status | None]:
    """How many nodes say they are."""
    return ask_at_once(addresses, partial(ask_status, files=files))


def ask_map(managers: str, files: TLSFiles | None = None) -> PartitionMap | None:
    """The partition map of the first of these managers that has it; None when none does, or where they are none."""
    for address in managers.split(","):
        try:
            return PartitionMap.decode(_blob(address, codec.GET_MAP, b"map", files))
        except (OSError, MadKVError):
            continue
    return None
