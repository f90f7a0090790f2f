"""A line client of etcd on grpcio, the library that Google and the gRPC project keep: what a Python user would take."""

import sys
from typing import Any

import grpc

from madkv.bench.peers.etcd_messages import EtcdStore
from madkv.bench.peers.serving import serve


def connect(address: str) -> EtcdStore:
    """A client of the member at `address`."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(address, options=unlimited)
    methods: dict[str, Any] = {}

    def call(path: str, request: Any, response: Any) -> Any:
        method = methods.get(path)
        if method is None:
            encode = type(request).SerializeToString
            method = methods[path] = channel.unary_unary(path, encode, response.FromString)
        return method(request)

    return EtcdStore(call)


if __name__ == "__main__":
    sys.exit(serve("madkv.bench.peers.etcd_line", connect, (grpc.RpcError,)))
