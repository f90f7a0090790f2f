"""How often metrics are made."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from madkv.limits import HTTP_CONNECTIONS_MAX, METRICS_SECONDS
from madkv.monitor.metrics import Metrics
from madkv.server.process import Inside


class MetricsTest(SynchronousTestCase):
    def test_whoever_asks_meanwhile_gets_the_same_text(self) -> None:
        clock = Clock()
        made: list[float] = []

        def inside() -> Inside | None:
            made.append(clock.seconds())
            return None

        metrics = Metrics("s0", inside, clock.seconds)
        for _ in range(3):
            texts = {metrics.text() for _ in range(HTTP_CONNECTIONS_MAX)}
            clock.advance(METRICS_SECONDS / 2)
            self.assertEqual({metrics.text()}, texts)
            self.assertIn(b"process_cpu_seconds_total", texts.pop())
            clock.advance(METRICS_SECONDS / 2)
        self.assertEqual(made, [0, METRICS_SECONDS, 2 * METRICS_SECONDS])
