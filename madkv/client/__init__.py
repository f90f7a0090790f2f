"""The client: one session, one router, and three faces on them (Deferred, blocking, line interface)."""
