"""The client: one session, one router, and four faces on them (blocking, Deferred, asyncio, line interface)."""
