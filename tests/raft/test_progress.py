"""What a leader knows of one peer."""

from twisted.trial.unittest import SynchronousTestCase

from madkv.raft.progress import Flow, Progress


class ProgressTest(SynchronousTestCase):
    """From a leader's election on, when it knows nothing."""

    def replicating(self, match_index: int = 5) -> Progress:
        progress = Progress(next_index=match_index + 1)
        progress.acknowledged(match_index)
        return progress

    def test_it_begins_by_probing(self) -> None:
        """Figure 2: after an election the next index is the one after the leader's last, the match index is 0."""
        progress = Progress(next_index=6)
        self.assertEqual((progress.flow, progress.match_index, progress.is_waiting), (Flow.PROBE, 0, False))
        progress.sent(7, 100)
        self.assertEqual((progress.next_index, progress.is_waiting, progress.in_flight_bytes), (6, True, 0))

    def test_an_acknowledged_probe_opens_the_flow(self) -> None:
        progress = Progress(next_index=6)
        progress.sent(7, 100)
        self.assertTrue(progress.acknowledged(7))
        self.assertEqual((progress.flow, progress.match_index, progress.next_index), (Flow.REPLICATE, 7, 8))
        self.assertFalse(progress.is_waiting)

    def test_a_probe_without_entries_opens_it_too(self) -> None:
        """To a peer that has nothing, of a leader that has nothing; or one that fell back to where it was."""
        progress = Progress(next_index=1)
        progress.sent(0, 0)
        self.assertFalse(progress.acknowledged(0))
        self.assertIs(progress.flow, Flow.REPLICATE)
        progress = self.replicating()
        progress.probe(6)
        progress.sent(5, 0)
        self.assertFalse(progress.acknowledged(5))
        self.assertIs(progress.flow, Flow.REPLICATE)

    def test_replication_runs_ahead(self) -> None:
        progress = self.replicating()
        for last_index in (7, 9, 12):
            progress.sent(last_index, 100)
        self.assertEqual((progress.next_index, progress.in_flight_bytes), (13, 300))
        self.assertTrue(progress.acknowledged(9))
        self.assertEqual((progress.match_index, progress.next_index, progress.in_flight_bytes), (9, 13, 100))
        self.assertTrue(progress.acknowledged(10))
        self.assertEqual(progress.in_flight_bytes, 100)
        self.assertTrue(progress.acknowledged(12))
        self.assertEqual(progress.in_flight_bytes, 0)

    def test_the_match_index_only_grows(self) -> None:
        progress = self.replicating(9)
        for index in (3, 9, 0):
            self.assertFalse(progress.acknowledged(index))
        self.assertEqual((progress.match_index, progress.next_index), (9, 10))

    def test_a_refusal_goes_back(self) -> None:
        """5.3: after a refusal the leader tries from further back."""
        progress = Progress(next_index=10)
        progress.sent(12, 100)
        self.assertTrue(progress.refused(9, 4))
        self.assertEqual((progress.flow, progress.next_index, progress.is_waiting), (Flow.PROBE, 4, False))

    def test_a_refusal_always_goes_back(self) -> None:
        """Whatever the hint: a refused index is not tried again, or it would go on for ever."""
        progress = Progress(next_index=10)
        self.assertTrue(progress.refused(9, 50))
        self.assertEqual(progress.next_index, 9)
        self.assertTrue(progress.refused(8, 0))
        self.assertEqual(progress.next_index, 1)

    def test_a_refusal_ends_the_flow(self) -> None:
        """Something got lost; what is in flight will be refused as well."""
        progress = self.replicating()
        for last_index in (6, 7, 8):
            progress.sent(last_index, 100)
        self.assertTrue(progress.refused(6, 6))
        self.assertEqual((progress.flow, progress.next_index, progress.in_flight_bytes), (Flow.PROBE, 6, 0))
        self.assertFalse(progress.refused(7, 6))
        self.assertEqual(progress.next_index, 6)

    def test_an_old_refusal_changes_nothing(self) -> None:
        progress = self.replicating(9)
        self.assertFalse(progress.refused(9, 3))
        self.assertFalse(progress.refused(4, 3))
        progress.probe(15)
        self.assertFalse(progress.refused(12, 3))
        self.assertEqual((progress.flow, progress.next_index), (Flow.PROBE, 15))

    def test_never_back_beyond_what_is_acknowledged(self) -> None:
        progress = self.replicating(9)
        progress.sent(12, 100)
        self.assertTrue(progress.refused(12, 2))
        self.assertEqual(progress.next_index, 10)

    def test_a_snapshot_ends_when_it_has_arrived(self) -> None:
        progress = Progress(next_index=10)
        progress.snapshot()
        progress.snapshot_index = 20
        self.assertFalse(progress.refused(9, 3))
        self.assertTrue(progress.acknowledged(7))
        self.assertIs(progress.flow, Flow.SNAPSHOT)
        self.assertTrue(progress.acknowledged(20))
        self.assertEqual((progress.flow, progress.next_index), (Flow.REPLICATE, 21))
