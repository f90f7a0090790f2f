"""The request generator against what YCSB's documentation and code define."""

from collections import Counter
from itertools import islice, pairwise
from math import sqrt
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkv.bench import generators
from madkv.bench.workload import (
    DEFAULTS,
    Call,
    CoreWorkload,
    WorkloadError,
    fault,
    read_properties,
    workload_text,
)

DRAWS = 20_000


def workload(name: str, seed: int = 7, clients: int = 1, **properties: object) -> CoreWorkload:
    """A loaded workload."""
    changed = {key: str(value) for key, value in properties.items()}
    made = CoreWorkload({**read_properties(workload_text(name)), **changed}, seed, clients)
    for call in made.load():
        made.acknowledged(call)
    return made


def run(made: CoreWorkload, client: int = 0) -> list[Call]:
    """One client's calls, each insert acknowledged as soon as it is made."""
    calls = []
    for call in made.calls(client):
        calls.append(call)
        if call.kind == "INSERT":
            made.acknowledged(call)
    return calls


def assert_share(count: int, total: int, expected: float) -> None:
    """Within five standard deviations of a binomial distribution."""
    assert abs(count - total * expected) <= 5 * sqrt(total * expected * (1 - expected)) + 1


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "hashed"),
    [(0, 6284781860667377211), (1, 8517097267634966620), (2, 1820151046732198393)],
)
def test_fnv_gives_the_key_names_that_every_ycsb_run_begins_with(number: int, hashed: int) -> None:
    assert generators.fnv_hash_64(number) == hashed


def plain_fnv(number: int) -> int:
    """YCSB's loop, step by step, in 64-bit arithmetic."""
    hashed = 0xCBF29CE484222325
    for _ in range(8):
        octet, number = number & 0xFF, number >> 8
        hashed = ((hashed ^ octet) * 1099511628211) % 2**64
    signed = hashed - 2**64 if hashed >= 2**63 else hashed
    return abs(signed)


@given(st.integers(0, 2**63 - 1))
def test_fnv_is_the_loop_over_all_eight_octets(number: int) -> None:
    assert generators.fnv_hash_64(number) == plain_fnv(number)


def test_zipfian_draws_items_as_often_as_their_rank_says() -> None:
    items = 1000
    zipfian = generators.Zipfian(Random(1), items)
    drawn = Counter(zipfian() for _ in range(DRAWS))
    assert min(drawn) == 0
    assert max(drawn) < items
    zeta = sum(1 / rank**0.99 for rank in range(1, items + 1))
    assert_share(drawn[0], DRAWS, 1 / zeta)
    assert_share(drawn[1], DRAWS, 0.5**0.99 / zeta)
    # Beyond the first two the generator is an approximation by its own definition.
    first_hundred = sum(1 / rank**0.99 for rank in range(1, 101)) / zeta
    assert sum(drawn[item] for item in range(100)) / DRAWS == pytest.approx(first_hundred, rel=0.05)


def test_zipfian_that_grew_is_like_one_made_that_large() -> None:
    grown, made = generators.Zipfian(Random(2), 10), generators.Zipfian(Random(2), 500)
    grown.grow(300)
    grown.grow(500)
    grown.grow(20)  # fewer: ignored
    assert [grown() for _ in range(1000)] == [made() for _ in range(1000)]


def test_scrambled_zipfian_has_a_favourite_that_no_number_of_records_changes() -> None:
    for items in (1000, 12_345):
        scrambled = generators.ScrambledZipfian(Random(3), items)
        drawn = Counter(scrambled() for _ in range(DRAWS))
        favourite = generators.fnv_hash_64(0) % items
        assert drawn.most_common(1)[0][0] == favourite
        # 1 / zeta(10^10), and what of all the others falls on the same record by chance.
        chance = 1 / 26.46902820178302
        assert_share(drawn[favourite], DRAWS, chance + (1 - chance) / items)
        assert max(drawn) < items


def test_latest_prefers_what_was_acknowledged_last() -> None:
    counter = generators.AcknowledgedCounter(1000)
    latest = generators.SkewedLatest(Random(4), counter)
    for number in iter(counter, 1100):
        counter.acknowledge(number)
    drawn = Counter(latest() for _ in range(DRAWS))
    assert max(drawn) == 1099
    assert min(drawn) >= 0
    assert_share(drawn[1099], DRAWS, 1 / generators.zeta(1099, 0.99))
    assert drawn[1099] > drawn[1098] > drawn[1000]


def test_counter_knows_up_to_where_all_is_acknowledged() -> None:
    counter = generators.AcknowledgedCounter(5)
    assert (counter.last, [counter(), counter(), counter()]) == (4, [5, 6, 7])
    counter.acknowledge(6)
    assert counter.last == 4
    counter.acknowledge(5)
    assert counter.last == 6
    with pytest.raises(AssertionError):
        counter.acknowledge(8)
    with pytest.raises(AssertionError):
        counter.acknowledge(6)


@pytest.mark.parametrize(("distribution", "mean"), [("constant", 9.0), ("uniform", 5.0)])
def test_lengths(distribution: str, mean: float) -> None:
    draw = generators.length(Random(5), distribution, 1, 9)
    drawn = [draw() for _ in range(DRAWS)]
    assert set(drawn) == ({9} if distribution == "constant" else set(range(1, 10)))
    assert sum(drawn) / DRAWS == pytest.approx(mean, abs=5 * 2.6 / sqrt(DRAWS))


def test_zipfian_lengths_prefer_the_short() -> None:
    draw = generators.length(Random(5), "zipfian", 3, 9)
    drawn = Counter(draw() for _ in range(DRAWS))
    assert set(drawn) == set(range(3, 10))
    assert_share(drawn[3], DRAWS, 1 / generators.zeta(7, 0.99))


# --- requests ---------------------------------------------------------------------------------------------------------

MIXES = {
    "a": {"READ": 0.5, "UPDATE": 0.5},
    "b": {"READ": 0.95, "UPDATE": 0.05},
    "c": {"READ": 1.0},
    "d": {"READ": 0.95, "INSERT": 0.05},
    "e": {"SCAN": 0.95, "INSERT": 0.05},
}


@pytest.mark.parametrize("name", MIXES)
def test_mix_of_each_workload(name: str) -> None:
    calls = run(workload(name, recordcount=500, operationcount=4000))
    assert len(calls) == 4000
    counts = Counter(call.kind for call in calls)
    assert set(counts) == set(MIXES[name])
    for kind, share in MIXES[name].items():
        assert_share(counts[kind], 4000, share)


def test_workload_f_reads_a_record_and_then_changes_it() -> None:
    calls = run(workload("f", recordcount=500, operationcount=4000))
    counts = Counter(call.kind for call in calls)
    assert counts["READ"] == 4000  # each operation reads, and is counted
    assert_share(counts["UPDATE"], 4000, 0.5)
    for before, call in pairwise(calls):
        if call.kind == "UPDATE":
            assert (before.kind, before.key) == ("READ", call.key)


def test_load_inserts_each_record_once_under_ycsbs_names() -> None:
    calls = list(CoreWorkload({**DEFAULTS, "recordcount": "200"}).load())
    assert calls[0].key == b"usertable_user6284781860667377211"
    assert calls[1].key == b"usertable_user8517097267634966620"
    assert len({call.key for call in calls}) == 200
    verb, key, value = calls[0].line.split(b" ")
    assert (verb, key) == (b"PUT", calls[0].key)
    assert [value.count(b"field%d=" % field) for field in range(10)] == [1] * 10
    assert len(value) == 10 * (len("field0=") + 100)


def test_lines_hold_nothing_but_visible_characters_and_del() -> None:
    made = workload("a", recordcount=300, operationcount=300)
    values = b"".join(call.line.split(b" ")[2] for call in [*made.load(), *run(made)] if call.kind != "READ")
    assert set(values) == set(range(0x21, 0x80))


def test_update_swaps_one_field() -> None:
    updates = [call for call in run(workload("a", recordcount=50, operationcount=400)) if call.kind == "UPDATE"]
    fields = Counter()
    for call in updates:
        verb, key, value = call.line.split(b" ")
        assert (verb, key, len(value)) == (b"SWAP", call.key, len("field0=") + 100)
        fields[value[:7]] += 1
    assert set(fields) == {b"field%d=" % field for field in range(10)}


def test_write_all_fields() -> None:
    updates = run(workload("a", recordcount=50, operationcount=50, writeallfields="true", readproportion=0))
    assert {len(call.line.split(b" ")[2]) for call in updates} == {1070}


def test_requests_are_zipfian_over_the_records() -> None:
    calls = run(workload("c", recordcount=1000, operationcount=DRAWS))
    drawn = Counter(call.key for call in calls)
    share = 1 / generators.SCRAMBLED_ZETA
    assert_share(drawn.most_common(1)[0][1], DRAWS, share + (1 - share) / 1001)


def test_requests_can_be_uniform() -> None:
    drawn = Counter(
        call.key for call in run(workload("c", requestdistribution="uniform", recordcount=10, operationcount=DRAWS))
    )
    assert len(drawn) == 10
    for count in drawn.values():
        assert_share(count, DRAWS, 0.1)


@pytest.mark.parametrize("name", ["d", "e"])
def test_requests_never_ask_for_a_record_that_is_not_acknowledged(name: str) -> None:
    made = workload(name, recordcount=100, operationcount=2000)
    stored = {made.key(number) for number in range(100)}
    under_way: list[Call] = []
    for call in made.calls(0):
        if call.kind == "INSERT":
            under_way.append(call)
            if len(under_way) == 5:
                # Answers come in any order: the oldest last.
                for done in reversed(under_way):
                    made.acknowledged(done)
                    stored.add(done.key)
                under_way.clear()
        else:
            assert call.key in stored
            assert stored.issuperset(call.records)


def test_inserts_of_several_clients_go_on_where_the_load_ended() -> None:
    made = workload("d", clients=2, recordcount=100, operationcount=500)
    numbers = [call.number for client in (0, 1) for call in run(made, client) if call.kind == "INSERT"]
    assert numbers == list(range(100, 100 + len(numbers)))


def test_scans_are_one_to_a_hundred_records_long() -> None:
    made = workload("e", recordcount=2000, operationcount=4000, insertproportion=0)
    names = sorted(made.key(number) for number in range(2000))
    lengths = []
    for call in run(made):
        first = names.index(call.key)
        assert call.records == names[first : first + len(call.records)]
        assert call.line == b"SCAN %b %b" % (call.key, call.records[-1])
        if first + 100 <= len(names):
            lengths.append(len(call.records))
        else:
            assert len(call.records) <= len(names) - first
    assert set(lengths) == set(range(1, 101))
    assert sum(lengths) / len(lengths) == pytest.approx(50.5, abs=5 * 28.9 / sqrt(len(lengths)))


def test_same_seed_same_requests() -> None:
    lines = [
        [call.line for call in islice(workload("a", seed, recordcount=20, operationcount=50).calls(client), 50)]
        for seed, client in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]
    assert lines[0] != lines[3]


def test_ordered_keys_with_padding() -> None:
    made = CoreWorkload({"insertorder": "ordered", "zeropadding": "6", "table": "t"})
    assert made.key(42) == b"t_user000042"


# --- property files ---------------------------------------------------------------------------------------------------


def test_property_files_as_java_reads_them() -> None:
    text = "# a comment\n! another\n\n recordcount = 5\nrequestdistribution: latest\ntable=a=b\n"
    assert read_properties(text) == {"recordcount": "5", "requestdistribution": "latest", "table": "a=b"}
    with pytest.raises(WorkloadError, match="expected name=value"):
        read_properties("recordcount")


def test_a_property_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("readproportion=1\nupdateproportion=0\nrecordcount=3\noperationcount=4\n")
    assert [call.kind for call in run(workload(str(path)))] == ["READ"] * 4
    with pytest.raises(WorkloadError, match="no workload 'g'"):
        workload_text("g")


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"recordcount": "many"}, "recordcount is not a whole number"),
        ({"recordcount": "0"}, "recordcount is 0"),
        ({"readproportion": "-1"}, "readproportion is not a proportion"),
        ({"readproportion": "0", "updateproportion": "0"}, "nothing to do"),
        ({"requestdistribution": "exponential"}, "known here: uniform, zipfian, latest"),
        ({"scanlengthdistribution": "x"}, "scanlengthdistribution is 'x'"),
        ({"writeallfields": "yes"}, "known here: true, false"),
        ({"minscanlength": "5", "maxscanlength": "4"}, "minscanlength is greater"),
    ],
)
def test_properties_that_make_no_sense(properties: dict[str, str], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        CoreWorkload(properties)


# --- answers ----------------------------------------------------------------------------------------------------------

GET = Call("READ", b"GET k", b"k", True, -1, [])
PUT = Call("INSERT", b"PUT k v", b"k", False, 1, [])
SWAP = Call("UPDATE", b"SWAP k v", b"k", True, -1, [])
SCAN = Call("SCAN", b"SCAN b d", b"b", True, -1, [b"b", b"d"])


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (GET, b"GET k v"),
        (GET._replace(stored=False), b"GET k null"),
        (PUT, b"PUT k found"),
        (PUT, b"PUT k not_found"),
        (SWAP, b"SWAP k old"),
        (SCAN, b"SCAN b d BEGIN\n  b 1\n  d 2\nSCAN END"),
        (SCAN, b"SCAN b d BEGIN\n  b 1\n  c 3\n  d 2\nSCAN END"),
        (SCAN._replace(records=[]), b"SCAN b d BEGIN\nSCAN END"),
    ],
)
def test_answers_that_can_be_right(call: Call, reply: bytes) -> None:
    assert fault(call, reply) is None


@pytest.mark.parametrize(
    ("call", "reply", "why"),
    [
        (GET, b"GET k null", "is null"),
        (GET, b"GET j v", "repeat"),
        (GET, b"", "repeat"),
        (GET, b"GET k ", "not one value"),
        (GET, b"GET k v w", "not one value"),
        (GET, b"GET k v\nGET k v", "not one value"),
        (SWAP, b"SWAP k null", "is null"),
        (PUT, b"PUT k v", "found or not_found"),
        (SCAN, b"SCAN b d", "one line"),
        (SCAN, b"SCAN b c BEGIN\n  b 1\n  d 2\nSCAN END", "repeat"),
        (SCAN, b"SCAN b d BEGIN\n  b 1\n  d 2", "no end"),
        (SCAN, b"SCAN b d BEGIN\n  b 1\nSCAN END", "1 of 2 records known to be stored are missing"),
        (SCAN, b"SCAN b d BEGIN\nSCAN END", "2 of 2 records"),
        (SCAN, b"SCAN b d BEGIN\n  d 2\n  b 1\nSCAN END", "not in order"),
        (SCAN, b"SCAN b d BEGIN\n  b 1\n  b 1\n  d 2\nSCAN END", "not in order"),
        (SCAN, b"SCAN b d BEGIN\n  a 1\n  b 1\n  d 2\nSCAN END", "outside"),
        (SCAN, b"SCAN b d BEGIN\n b 1\n  d 2\nSCAN END", "not a pair"),
        (SCAN, b"SCAN b d BEGIN\n  b\n  d 2\nSCAN END", "not a pair"),
        (SCAN, b"SCAN b d BEGIN\n  b 1 1\n  d 2\nSCAN END", "not a pair"),
    ],
)
def test_answers_that_cannot_be_right(call: Call, reply: bytes, why: str) -> None:
    found = fault(call, reply)
    assert found is not None
    assert why in found
