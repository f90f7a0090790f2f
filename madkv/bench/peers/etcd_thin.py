"""A line client of etcd that is as lean as MadKV's: gRPC's bytes by hand over one blocking socket."""

import socket
import sys
from typing import Any

from madkv.addresses import parse_address
from madkv.bench.peers.etcd_messages import STATUS, EtcdStore, StatusRequest, StatusResponse
from madkv.bench.peers.http2 import Connection, RpcError
from madkv.bench.peers.serving import serve

READ_BYTES = 1 << 16


class Caller:
    """One call at a time on one connection."""

    def __init__(self, address: str, timeout_seconds: float | None = None) -> None:
        self._socket = socket.create_connection(parse_address(address), timeout_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = Connection(address)
        self._socket.sendall(self._connection.greeting())

    def call(self, path: str, request: Any, response: Any) -> Any:
        """Make a call; its response. Raises RpcError and OSError."""
        _, data = self._connection.call(path, request.SerializeToString())
        self._socket.sendall(data)
        while True:
            received = self._socket.recv(READ_BYTES)
            if not received:
                raise RpcError("the server closed the connection")
            done, reply = self._connection.receive(received)
            if reply:
                self._socket.sendall(reply)
            if done:
                return response.FromString(done[0][1])

    def close(self) -> None:
        """Leave."""
        self._socket.close()


def connect(address: str) -> EtcdStore:
    """A client of the member at `address`."""
    return EtcdStore(Caller(address).call)


def status(address: str, timeout_seconds: float) -> tuple[str, bool]:
    """A member's version, and whether it leads. Raises RpcError and OSError."""
    caller = Caller(address, timeout_seconds)
    try:
        answer = caller.call(STATUS, StatusRequest(), StatusResponse)
    finally:
        caller.close()
    return answer.version, answer.leader != 0 and answer.leader == answer.header.member_id


if __name__ == "__main__":
    sys.exit(serve("madkv.bench.peers.etcd_thin", connect, (RpcError, OSError)))
