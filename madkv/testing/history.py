"""What clients did to a store and what they were told: the record that the checker judges.

A history is a list of operations in any order. All times are of one clock. The file form is JSON lines: first one
object that describes the run, then one object per operation; bytes are written as the characters of the same numbers
(latin-1), so that any key and value survives.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

Kind = Literal["PUT", "SWAP", "GET", "DELETE", "SCAN"]
KINDS: tuple[Kind, ...] = ("PUT", "SWAP", "GET", "DELETE", "SCAN")
Pairs = tuple[tuple[bytes, bytes], ...]
Result = bool | bytes | None | Pairs
"""PUT, DELETE: whether the key existed. SWAP, GET: the (old) value or None. SCAN: the pairs."""

FORMAT = 1


@attrs.frozen
class Operation:
    """One call of one client.

    A SCAN keeps its start in `key` and its end in `value`. `returned_ns` is None when the outcome is unknown (the
    client died, or the run was cut): the operation may have taken effect at any time after its call, or never;
    `result` then says nothing.
    """

    client: int
    kind: Kind
    key: bytes
    value: bytes | None
    called_ns: int
    returned_ns: int | None
    result: Result = None


def write_history(path: Path, about: Mapping[str, Any], history: Iterable[Operation]) -> None:
    """Write a history to a file, parents made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write(json.dumps({"madkv_history": FORMAT, **about}) + "\n")
        for operation in history:
            record = {
                "client": operation.client,
                "kind": operation.kind,
                "key": _text(operation.key),
                "value": _text(operation.value),
                "called_ns": operation.called_ns,
                "returned_ns": operation.returned_ns,
                "result": _plain(operation.result),
            }
            file.write(json.dumps(record) + "\n")


def read_history(path: Path) -> tuple[dict[str, Any], list[Operation]]:
    """The description and the operations of a file that `write_history` made; ValueError when it is not one."""
    with path.open() as file:
        try:
            about = json.loads(file.readline())
            if not isinstance(about, dict) or about.get("madkv_history") != FORMAT:
                raise ValueError("not a history of this version")
            return about, [_operation(json.loads(line)) for line in file]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a history: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("latin-1")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1")


def _plain(result: Result) -> bool | str | list[list[str]] | None:
    if isinstance(result, bytes):
        return result.decode("latin-1")
    if isinstance(result, tuple):
        return [[key.decode("latin-1"), value.decode("latin-1")] for key, value in result]
    return result


def _operation(record: dict[str, Any]) -> Operation:
    result = record["result"]
    if isinstance(result, str):
        result = result.encode("latin-1")
    elif isinstance(result, list):
        result = tuple((key.encode("latin-1"), value.encode("latin-1")) for key, value in result)
    if record["kind"] not in KINDS:
        raise ValueError(f"no such kind of operation: {record['kind']!r}")
    return Operation(
        record["client"],
        record["kind"],
        record["key"].encode("latin-1"),
        _bytes(record["value"]),
        record["called_ns"],
        record["returned_ns"],
        result,
    )


Ours = Callable[[bytes], bool]
"""Whether a key belongs to the history: nobody else can have written it."""
