"""The fixture that holds for every test must itself catch what it is there for."""

from pathlib import Path

import pytest

CULPRITS = """
from twisted.internet import defer, reactor

def test_delayed_call():
    reactor.callLater(3600, print)

def test_unhandled_failure():
    defer.fail(ValueError("nobody looked"))

def test_in_a_cycle():
    deferred = defer.Deferred()
    deferred.itself = deferred
    deferred.errback(KeyError("in a cycle"))

def test_expected(logged_failures):
    defer.fail(ValueError("expected"))
    assert len(logged_failures) == 1
    logged_failures.clear()

def test_clean():
    defer.fail(ValueError("handled")).addErrback(lambda failure: None)
"""

pytest_plugins = ["pytester"]


def test_leftovers_fail_a_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makepyfile(CULPRITS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(["*left scheduled*", "*nobody looked*", "*in a cycle*"])
