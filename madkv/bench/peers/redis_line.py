"""A line client of Redis on redis-py with its own C parser (hiredis), as redis-py recommends.

Pairs are plain strings. Redis keeps no order among them, so there is nothing to scan: started as `HOST:PORT/ordered`,
the client keeps a sorted set of the keys beside them, written in the same transaction as each pair, and a SCAN reads
both in one script, at one point.
"""

import sys

import redis

from madkv.addresses import parse_address
from madkv.bench.peers.serving import serve
from madkv.errors import InvalidArgument

ORDERED = "/ordered"
INDEX = b"\0madkv-keys"
SCAN = """
local keys = redis.call('ZRANGE', KEYS[1], '[' .. ARGV[1], '[' .. ARGV[2], 'BYLEX')
local found = {}
for first = 1, #keys, 1000 do
    local last = math.min(first + 999, #keys)
    for at, value in ipairs(redis.call('MGET', unpack(keys, first, last))) do
        found[#found + 1] = keys[first + at - 1]
        found[#found + 1] = value
    end
end
return found
"""


class RedisStore:
    """The line interface's calls as Redis commands."""

    def __init__(self, address: str) -> None:
        address, _, ordered = address.partition("/")
        host, port = parse_address(address)
        self._redis = redis.Redis(host=host, port=port)
        self._ordered = bool(ordered)
        self._scan = self._redis.register_script(SCAN)

    def put(self, key: bytes, value: bytes) -> bool:
        """Whether the key existed."""
        return self.swap(key, value) is not None

    def swap(self, key: bytes, value: bytes) -> bytes | None:
        """The old value: one SET with GET."""
        if not self._ordered:
            return self._redis.set(key, value, get=True)  # type: ignore[return-value]
        both = self._redis.pipeline(transaction=True)
        both.set(key, value, get=True)
        both.zadd(INDEX, {key: 0})
        return both.execute()[0]

    def get(self, key: bytes) -> bytes | None:
        """The value."""
        return self._redis.get(key)  # type: ignore[return-value]

    def delete(self, key: bytes) -> bool:
        """Whether the key existed."""
        if not self._ordered:
            return bool(self._redis.delete(key))
        both = self._redis.pipeline(transaction=True)
        both.delete(key)
        both.zrem(INDEX, key)
        return bool(both.execute()[0])

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs from `start` to `end`, in order."""
        if not self._ordered:
            raise InvalidArgument(f"this client keeps no order of keys; one of HOST:PORT{ORDERED} does")
        found = self._scan(keys=[INDEX], args=[start, end])
        return list(zip(found[::2], found[1::2], strict=True))


if __name__ == "__main__":
    sys.exit(serve("madkv.bench.peers.redis_line", RedisStore, (redis.RedisError,)))
