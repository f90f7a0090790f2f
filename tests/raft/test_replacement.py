"""Steps from the members that a group has to those that it should have: every case of a small world."""

from collections.abc import Iterable, Iterator
from itertools import chain, combinations, product

import pytest

from madkv.raft.configuration import Configuration, Member
from madkv.raft.replacement import next_step

REPLICAS = 3
OLD = [Member(replica, b"old") for replica in range(REPLICAS)]
NEW = [Member(replica, b"new") for replica in range(REPLICAS)]
EVERYBODY = (*OLD, *NEW)


def subsets(members: Iterable[Member]) -> Iterator[frozenset[Member]]:
    members = list(members)
    return map(frozenset, chain.from_iterable(combinations(members, size) for size in range(len(members) + 1)))


def configurations() -> Iterator[Configuration]:
    """All of six members in which somebody has a vote."""
    for roles in product("-VL", repeat=len(EVERYBODY)):
        of = {role: frozenset(each for each, its in zip(EVERYBODY, roles, strict=True) if its == role) for role in "VL"}
        if of["V"]:
            yield Configuration(of["V"], of["L"])


def wishes() -> Iterator[Configuration]:
    """All in which a replica number is on one disk or not named."""
    for disks in product((None, *range(2)), repeat=REPLICAS):
        yield Configuration(frozenset((OLD, NEW)[at][replica] for replica, at in enumerate(disks) if at is not None))


def test_every_step_is_a_safe_one() -> None:
    steps = 0
    for configuration, wanted in product(configurations(), wishes()):
        for caught_up in subsets(wanted.voters - configuration.voters):
            step = next_step(configuration, wanted, caught_up.__contains__)
            if step is None:
                continue
            steps += 1
            case = configuration, wanted, caught_up
            assert step != configuration, case
            assert step.differs_by_one_voter(configuration) and step.voters, case
            # Who gets a vote is wanted, was a learner, and holds what is committed.
            assert step.voters - configuration.voters <= caught_up & wanted.voters & configuration.learners, case
            assert step.learners - configuration.members <= wanted.voters, case
            # Who goes has another disk in its place, or got a vote.
            gone = configuration.members - step.members
            assert not gone & wanted.voters, case
            assert {each.replica for each in gone} <= {each.replica for each in wanted.voters}, case
    assert steps > 10_000


def test_steps_lead_to_what_is_wanted() -> None:
    """From any configuration that can come about: each replica number has a vote on one disk at most."""
    for configuration, wanted in product(configurations(), wishes()):
        numbers = [voter.replica for voter in configuration.voters]
        if len(numbers) != len(set(numbers)):
            continue
        named = {each.replica for each in wanted.voters}
        last_one = configuration.voters if len(configuration.voters) == 1 else frozenset()
        now, steps = configuration, 0
        while (step := next_step(now, wanted, lambda member: True)) is not None:
            now, steps = step, steps + 1
            assert steps <= 4 * REPLICAS, (configuration, wanted)
        reached = frozenset(each for each in now.voters if each.replica in named)
        if last_one and now.voters == last_one:
            assert {each.replica for each in wanted.voters - last_one} <= {each.replica for each in last_one}
        else:
            assert reached == wanted.voters, (configuration, wanted)
        kept = frozenset(each for each in configuration.voters if each.replica not in named)
        assert kept <= now.voters, "who is not named stays"


def test_nobody_gets_a_vote_before_it_has_caught_up() -> None:
    now, wanted = Configuration(frozenset(OLD)), Configuration(frozenset((OLD[0], OLD[1], NEW[2])))
    seen = [now]
    while (step := next_step(now, wanted, lambda member: False)) is not None:
        now = step
        seen.append(now)
    assert seen[1:] == [Configuration(frozenset(OLD[:2])), Configuration(frozenset(OLD[:2]), frozenset((NEW[2],)))]


@pytest.mark.parametrize("wanted", [NEW[:1], []])
def test_a_group_of_one_stays(wanted: list[Member]) -> None:
    """Its new disk has nobody to get anything from."""
    group = Configuration(frozenset(OLD[:1]))
    assert next_step(group, Configuration(frozenset(wanted)), lambda member: True) is None


def test_a_disk_that_was_lost_while_it_caught_up_makes_room() -> None:
    newer = Member(2, b"newer")
    now = Configuration(frozenset(OLD[:2]), frozenset((NEW[2],)))
    wanted = Configuration(frozenset((*OLD[:2], newer)))
    step = next_step(now, wanted, lambda member: False)
    assert step == Configuration(frozenset(OLD[:2]))
    assert next_step(step, wanted, lambda member: False) == Configuration(frozenset(OLD[:2]), frozenset((newer,)))
