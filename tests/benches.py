"""What tests of benchmarks share: a stand-in for `just` that starts services and clients, and results as they look."""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from tests import standin
from tests.processes import just_script


def _standin() -> str:
    """At a path with a space and a quote in it."""
    directory = Path(tempfile.mkdtemp(prefix="madkv's stand-in "))
    atexit.register(shutil.rmtree, directory)
    return just_script(directory / "just", sys.executable, "-S", "-E", standin.__file__)


STANDIN = _standin()
EXAMPLE = """\
Benchmarking results:
[Load]    2345 ms
  Throughput:    1234.56 ops/sec
  Latency:    INSERT  ops   2895  avg   812.34  min    201  max   9876  p99   3210  us
[Run]     1234 ms
  Throughput:   10012.00 ops/sec
  Latency:    READ    ops   5012  avg   812.34  min    201  max   9876  p99   3210  us
              UPDATE  ops   4988  avg   901.22  min    301  max  12345  p99   4567  us"""
