"""Lines of the log that strangers could have written again and again: each is said now and then, or once."""

from collections import deque
from collections.abc import Hashable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from madkv.limits import SAME_LINE_SECONDS


class SeldomLine:
    """A line of the log for what may happen very often: once in SAME_LINE_SECONDS, with how many were not said."""

    def __init__(self, clock: IReactorTime, log: Logger) -> None:
        self._clock = clock
        self._log = log
        self._next = 0.0
        self._unsaid = 0

    def say(self, line: str) -> None:
        """Log the line now, or count it."""
        now = self._clock.seconds()
        if now < self._next:
            self._unsaid += 1
            return
        more = f" ({self._unsaid:,} more since the last such line)" if self._unsaid else ""
        self._next, self._unsaid = now + SAME_LINE_SECONDS, 0
        self._log.info("{line}{more}", line=line, more=more)


class FirstLine:
    """Lines that are logged when they come for the first time, as warnings. Whoever makes up ever new ones gets past
    the `kept` latest that are remembered: then they are as seldom as a SeldomLine."""

    def __init__(self, clock: IReactorTime, log: Logger, kept: int) -> None:
        self._log = log
        self._said: deque[Hashable] = deque(maxlen=kept)
        self._seldom = SeldomLine(clock, log)

    def say(self, what: Hashable, line: str) -> None:
        """Log the line, unless `what` it says was said lately."""
        if what in self._said:
            return
        if len(self._said) == self._said.maxlen:
            self._seldom.say(line)
        else:
            self._log.warn("{line}", line=line)
        self._said.append(what)
