"""LMDB's pages where they are so wrong that a walk through them might not end well."""

from pathlib import Path

from madkv.storage.pages import _FREE_TREE_AT, _LEAF, _MAIN_TREE_AT, _NO_PAGE, _NODE, _PAGE, _TREE, _TREE_WITHIN, Pages
from tests.storage.recording import PAGE_BYTES

NESTED = 1000


def tree(root: int, unused: int = 0) -> bytes:
    return _TREE.pack(unused, 0, *((0,) * 5 if root == _NO_PAGE else (1, 0, 1, 0, 1)), root)


def test_trees_within_trees(tmp_path: Path) -> None:
    """Only the list of tables holds trees. More within each other than Python may call would end in a traceback."""
    pages = [bytearray(PAGE_BYTES) for _ in range(NESTED + 2)]
    for meta in pages[:2]:
        meta[_FREE_TREE_AT : _FREE_TREE_AT + _TREE.size] = tree(_NO_PAGE, PAGE_BYTES)
        meta[_MAIN_TREE_AT : _MAIN_TREE_AT + _TREE.size] = tree(2)
        at = _MAIN_TREE_AT + _TREE.size
        meta[at : at + 8] = (len(pages) - 1).to_bytes(8, "little")
    place = PAGE_BYTES - _NODE.size - 2 - _TREE.size
    for number, page in enumerate(pages[2:], 2):
        head = _PAGE.pack(number, 0, _LEAF, _PAGE.size + 2, place) + place.to_bytes(2, "little")
        within = tree(number + 1 if number + 1 < len(pages) else _NO_PAGE)
        page[: len(head)] = head
        page[place:] = _NODE.pack(_TREE.size, 0, _TREE_WITHIN, 2) + b"tt" + within
    path = tmp_path / "data.mdb"
    path.write_bytes(b"".join(pages))
    damage: list[tuple[str, str]] = []
    Pages(path, lambda what, where: damage.append((what, where)), lambda done, total: None).walk()
    assert damage[0] == ("LMDB's pages: one is not what it should be", "page 3, in tt")
