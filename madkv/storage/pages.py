"""LMDB's own pages, read without LMDB: whether its trees and its list of free pages hold together.

LMDB looks at a page when it needs it, and believes much of what is written there: a changed bit may show first when a
commit fails, or make it write over what is in use. The layout is that of LMDB 0.9, which keeps its data format.

    page     number (8 bytes), 2 unused, flags (2), where the list of its nodes ends (2), where the nodes begin (2);
             of a long value instead of the last two: how many pages it takes (4)
    node     length of the data (2 low, 2 high), flags (2), length of the key (2), key, data;
             on a branch the first three are the number of a page
    tree     4 unused, flags (2), depth (2), how many branches, leaves, overflow pages and records, the root (8 each)
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

PAGES_BETWEEN_WORDS = 4096
"""How many pages are read between two words about progress."""
META_PAGES = 2
TREE_BYTES = 48
_FREE_TREE_AT, _MAIN_TREE_AT, _LAST_PAGE_AT, _COMMIT_AT, _META_BYTES = 40, 88, 136, 144, 152
_BRANCH, _LEAF, _OVERFLOW, _META, _LEAF_OF_KEYS = 1, 2, 4, 8, 0x20
_KINDS = _BRANCH | _LEAF | _OVERFLOW | _META | _LEAF_OF_KEYS
_LONG, _TREE_WITHIN = 1, 2
_NO_PAGE = (1 << 64) - 1
_PAGE = struct.Struct("=QHHHH")
_PAGES_AT = 12
_NODE = struct.Struct("=HHHH")
_TREE = struct.Struct("=IHHQQQQQ")
_NUMBER, _SHORT = struct.Struct("=Q"), struct.Struct("=I")

_TABLES = "the list of tables"

Damaged = Callable[[str, str], None]
"""Told what kind of damage there is, and where."""


class _Wrong(Exception):
    """A page is not what it should be."""


@attrs.define
class _Counts:
    branches: int = 0
    leaves: int = 0
    long_pages: int = 0
    records: int = 0


def commits(data_file: Path) -> list[int]:
    """The numbers of the two last commits, as the two pages in front say in turn."""
    with open(data_file, "rb") as file:
        return [_NUMBER.unpack_from(page, _COMMIT_AT)[0] for page in _meta_pages(file.read(_META_BYTES), data_file)]


def _meta_pages(first: bytes, data_file: Path) -> list[bytes]:
    page_bytes = _SHORT.unpack_from(first, _FREE_TREE_AT)[0]
    with open(data_file, "rb") as file:
        file.seek(page_bytes)
        return [first, file.read(_META_BYTES)]


class Pages:
    """One walk through all trees of a data file that is as long as it must be."""

    def __init__(self, data_file: Path, damaged: Damaged, progress: Callable[[int, int], None]) -> None:
        """`progress` is told how many pages were read, and how many there are."""
        self._file = open(data_file, "rb", buffering=0)  # noqa: SIM115 closed by `walk`
        first, second = _meta_pages(self._file.read(_META_BYTES), data_file)
        self._meta = max(first, second, key=lambda page: _NUMBER.unpack_from(page, _COMMIT_AT)[0])
        self._page_bytes = _SHORT.unpack_from(first, _FREE_TREE_AT)[0]
        self._count = _NUMBER.unpack_from(self._meta, _LAST_PAGE_AT)[0] + 1
        self._used = bytearray(self._count)
        self._used[:META_PAGES] = b"\1" * META_PAGES
        self._damaged = damaged
        self._progress = progress
        self._read = 0

    def walk(self) -> None:
        """Go through all of them."""
        with self._file:
            free: list[int] = []
            self._tree("the list of free pages", self._meta[_FREE_TREE_AT:][:TREE_BYTES], free)
            self._tree(_TABLES, self._meta[_MAIN_TREE_AT:][:TREE_BYTES], None)
        for number in free:
            self._use(number, "the list of free pages")

    def _use(self, number: int, name: str) -> bool:
        if not META_PAGES <= number < self._count:
            self._damaged("LMDB's pages: one is named that cannot be there", f"page {number}, by {name}")
            return False
        if self._used[number]:
            self._damaged("LMDB's pages: one has two uses", f"page {number}, the second in {name}")
            return False
        self._used[number] = 1
        return True

    def _tree(self, name: str, record: bytes, free: list[int] | None) -> None:
        """Walk through a tree; of that of free pages, gather them."""
        _, _, depth, branches, leaves, long_pages, records, root = _TREE.unpack(record)
        found, reached = _Counts(), 0
        waiting = [] if root == _NO_PAGE else [(root, 1)]
        while waiting:
            number, level = waiting.pop()
            if not self._use(number, name):
                continue
            reached = max(reached, level)
            try:
                waiting += [(below, level + 1) for below in self._page(number, name, level == depth, found, free)]
            except (_Wrong, struct.error):
                self._damaged("LMDB's pages: one is not what it should be", f"page {number}, in {name}")
        if (found.branches, found.leaves, found.long_pages, found.records, reached) != (
            *(branches, leaves, long_pages, records),
            depth,
        ):
            self._damaged("LMDB's pages: a tree has others than were counted", name)

    def _page(self, number: int, name: str, is_leaf: bool, found: _Counts, free: list[int] | None) -> Iterator[int]:
        """One page of a tree: the pages below it. Raises _Wrong and struct.error."""
        page = self._content(number, 1)
        itself, _, flags, lower, upper = _PAGE.unpack_from(page)
        if (
            itself != number
            or flags & _KINDS != (_LEAF if is_leaf else _BRANCH)
            or not _PAGE.size < lower <= upper <= self._page_bytes
            or lower % 2
        ):
            raise _Wrong
        places = struct.unpack_from(f"={(lower - _PAGE.size) // 2}H", page, _PAGE.size)
        if min(places) < upper:
            raise _Wrong
        if not is_leaf:
            found.branches += 1
            for at in places:
                low, high, more, _ = _NODE.unpack_from(page, at)
                yield low | high << 16 | more << 32
            return
        found.leaves += 1
        for at in places:
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
            length, begin = low | high << 16, at + _NODE.size + key_bytes
            found.records += 1
            if node_flags == _LONG:
                data = self._long(_NUMBER.unpack_from(page, begin)[0], length, name, found, free is not None)
            elif begin + length > self._page_bytes:
                raise _Wrong
            else:
                data = page[begin : begin + length]
            if free is not None:
                count = _NUMBER.unpack_from(data)[0]
                if len(data) != (count + 1) * _NUMBER.size:
                    raise _Wrong
                free += struct.unpack_from(f"={count}Q", data, _NUMBER.size)
            elif node_flags == _TREE_WITHIN:
                if length != TREE_BYTES or name is not _TABLES:  # no other tree holds any; there might be thousands
                    raise _Wrong
                self._tree(page[at + _NODE.size : begin].decode(errors="replace"), data, None)
            elif node_flags not in (0, _LONG):
                raise _Wrong

    def _long(self, number: int, length: int, name: str, found: _Counts, is_wanted: bool) -> bytes:
        """The pages of a long value, and if it is wanted the value. Raises _Wrong."""
        pages = (_PAGE.size - 1 + length) // self._page_bytes + 1
        if number + pages > self._count or not all(self._use(each, name) for each in range(number, number + pages)):
            raise _Wrong
        content = self._content(number, pages if is_wanted else 1)
        itself, _, flags, _, _ = _PAGE.unpack_from(content)
        if itself != number or flags & _KINDS != _OVERFLOW or _SHORT.unpack_from(content, _PAGES_AT)[0] != pages:
            raise _Wrong
        found.long_pages += pages
        return content[_PAGE.size : _PAGE.size + length]

    def _content(self, number: int, pages: int) -> bytes:
        content = os.pread(self._file.fileno(), pages * self._page_bytes, number * self._page_bytes)
        if len(content) != pages * self._page_bytes:
            raise _Wrong
        self._read += 1
        if not self._read % PAGES_BETWEEN_WORDS:
            self._progress(self._read, self._count)
        return content
