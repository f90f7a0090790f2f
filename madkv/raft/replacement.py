"""How a group comes from the members it has to those that are wanted, one safe step at a time.

A replica whose disk was lost is another member on its new disk (`configuration.Member`). Its old member goes first, so
that the group never counts on a disk that is gone for more than it has to; the new one becomes a learner, and gets a
vote once it holds what is committed: until then it would only be in the way (dissertation, section 4.2.1).
"""

from collections.abc import Callable

from madkv.raft.configuration import Configuration, Member


def next_step(
    configuration: Configuration, wanted: Configuration, has_caught_up: Callable[[Member], bool]
) -> Configuration | None:
    """The configuration to propose next; None when there is nothing to do, or not yet.

    The voters of `wanted` are the disks that the group should be on. A replica that it does not name keeps its member.
    """
    voters, learners = configuration.voters, configuration.learners
    numbers = {member.replica for member in wanted.voters}
    for gone in sorted(learners):
        if gone.replica in numbers and gone not in wanted.voters:
            return Configuration(voters, learners - {gone})
    for gone in sorted(voters):
        if gone.replica in numbers and gone not in wanted.voters and len(voters) > 1:
            return Configuration(voters - {gone}, learners)
    for new in sorted(wanted.voters - voters):
        if any(voter.replica == new.replica for voter in voters):
            continue  # its old member is the only voter: there is nobody else to learn from
        if new not in learners:
            return Configuration(voters, learners | {new})
        if has_caught_up(new):
            return Configuration(voters | {new}, learners - {new})
    return None
