"""The messages of etcd's v3 API that a key-value client needs, made from its published field numbers.

Field numbers are those of etcd's `rpc.proto` and `kv.proto`; what a client here does not look at is left out, which
protocol buffers allow. The classes are made at import, so that no generated code has to fit the installed version.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "madkv_etcd"
_KINDS = {"int64": 3, "uint64": 4, "bool": 8, "string": 9, "message": 11, "bytes": 12}
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Header": {"member_id": (2, "uint64"), "revision": (3, "int64")},
    "KeyValue": {"key": (1, "bytes"), "value": (5, "bytes")},
    "RangeRequest": {"key": (1, "bytes"), "range_end": (2, "bytes"), "limit": (3, "int64")},
    "RangeResponse": {"header": (1, "Header"), "kvs": (2, "repeated KeyValue"), "more": (3, "bool")},
    "PutRequest": {"key": (1, "bytes"), "value": (2, "bytes"), "prev_kv": (4, "bool")},
    "PutResponse": {"header": (1, "Header"), "prev_kv": (2, "KeyValue")},
    "DeleteRangeRequest": {"key": (1, "bytes"), "range_end": (2, "bytes")},
    "DeleteRangeResponse": {"header": (1, "Header"), "deleted": (2, "int64")},
    "StatusRequest": {},
    "StatusResponse": {"header": (1, "Header"), "version": (2, "string"), "leader": (4, "uint64")},
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated, _, base = kind.rpartition(" ")
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            added.type = _KINDS.get(base, _KINDS["message"])
            if base not in _KINDS:
                added.type_name = f".{_PACKAGE}.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES = _classes()
RangeRequest = MESSAGES["RangeRequest"]
RangeResponse = MESSAGES["RangeResponse"]
PutRequest = MESSAGES["PutRequest"]
PutResponse = MESSAGES["PutResponse"]
DeleteRangeRequest = MESSAGES["DeleteRangeRequest"]
DeleteRangeResponse = MESSAGES["DeleteRangeResponse"]
StatusRequest = MESSAGES["StatusRequest"]
StatusResponse = MESSAGES["StatusResponse"]

RANGE = "/etcdserverpb.KV/Range"
PUT = "/etcdserverpb.KV/Put"
DELETE = "/etcdserverpb.KV/DeleteRange"
STATUS = "/etcdserverpb.Maintenance/Status"


def range_end(end: bytes) -> bytes:
    """The key right behind `end`: etcd's ranges leave their end out, a SCAN's does not."""
    return end + b"\0"


class EtcdStore:
    """The line interface's calls as etcd's, over whatever makes one unary call; reads are linearizable, etcd's default.

    A PUT or SWAP is one Put with `prev_kv`: etcd applies it and looks the old value up in the same transaction.
    """

    def __init__(self, call: Any) -> None:
        """`call(path, request, response_class)` makes one call and returns its response."""
        self._call = call

    def put(self, key: bytes, value: bytes) -> bool:
        """Whether the key existed."""
        return bool(self._put(key, value).HasField("prev_kv"))

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """The old value."""
        response = self._put(key, value)
        return response.prev_kv.value if response.HasField("prev_kv") else None

    def _put(self, key: bytes, value: bytes) -> Any:
        return self._call(PUT, PutRequest(key=key, value=value, prev_kv=True), PutResponse)

    def get(self, key: bytes) -> bytes | None:
        """The value."""
        found = self._call(RANGE, RangeRequest(key=key), RangeResponse).kvs
        return found[0].value if found else None

    def delete(self, key: bytes) -> bool:
        """Whether the key existed."""
        return bool(self._call(DELETE, DeleteRangeRequest(key=key), DeleteRangeResponse).deleted)

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs from `start` to `end`, in order."""
        if start > end:
            return []
        found = self._call(RANGE, RangeRequest(key=start, range_end=range_end(end)), RangeResponse).kvs
        return [(pair.key, pair.value) for pair in found]
