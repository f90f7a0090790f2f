"""One target under atheris, for `tests.fuzzing.run`: the first word is its name, all others go to libFuzzer.

Coverage is counted in `madkv` alone: what the target itself does is no news.
"""

import os
import sys

import atheris
from twisted.logger import globalLogBeginner

with atheris.instrument_imports(include=["madkv"]):
    from tests.fuzzing.targets import TARGETS

if __name__ == "__main__":
    # Until logging begins, Twisted keeps what is logged, and with it whoever logs: memory would seem to grow.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    _, target, *words = sys.argv
    atheris.Setup([os.environ["MADKV_FUZZ"], *words], TARGETS[target])  # by which libFuzzer starts itself again
    atheris.Fuzz()
