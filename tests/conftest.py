"""What holds for every test under pytest."""

import gc
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet import reactor
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

if TYPE_CHECKING:
    from tests.processes import ServerProcess


@pytest.fixture(scope="session", autouse=True)
def _collection_is_quick() -> None:
    """Set aside what the imports made, so that looking for forgotten Deferreds after each test takes no time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logged_failures(request: pytest.FixtureRequest) -> Iterator[list[LogEvent]]:
    """Fail a test that leaves a delayed call, or a failure that nobody looked at.

    pytest-twisted lets both pass. A Deferred reports a failure nobody handled when it is collected, hence the
    collection. A test that expects failures in the log looks at this list and clears it; trial's own test cases have
    `flushLoggedErrors` for that, and fail by themselves.
    """
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            failures.append(event)

    is_trial_case = isinstance(request.instance, SynchronousTestCase)
    clock: Any = reactor
    before = set(map(id, clock.getDelayedCalls()))
    globalLogPublisher.addObserver(observe)
    try:
        yield failures
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
    left = [call for call in clock.getDelayedCalls() if id(call) not in before]
    described = [str(call) for call in left]
    for call in left:
        call.cancel()
    assert not left, f"left scheduled: {described}"
    if failures and not is_trial_case:
        tracebacks = [event["log_failure"].getTraceback() for event in failures]
        pytest.fail("failures that nobody looked at:\n" + "\n".join(tracebacks), pytrace=False)


@pytest.fixture(scope="session")
def server() -> Iterator["ServerProcess"]:
    """One real server for all tests that do not mind the pairs of others."""
    from tests.processes import ServerProcess

    with ServerProcess() as process:
        yield process


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry sooner, for tests that break many connections, or wait for many refusals."""
    from madkv.client import router

    monkeypatch.setattr(router, "RETRY_SECONDS_MIN", 0.001)
    monkeypatch.setattr(router, "RETRY_SECONDS_MAX", 0.01)


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """For tests of tools in this very process, which hear interrupts in their own way."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
