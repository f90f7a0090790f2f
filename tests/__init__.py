"""Tests of MadKV. What pytest and trial both must know stands here."""

from hypothesis import settings

# Examples run on busy machines and under coverage: how long one takes says nothing.
settings.register_profile("madkv", deadline=None)
settings.load_profile("madkv")
