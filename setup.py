"""Packaging of MadKV: `pip install .` gives the twistd plugin and the `madkv` command."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "madkv" / "__init__.py").read_text()).group(1)

# What the daemons' option `--http` needs.
HTTP = ["prometheus-client>=0.20,<1"]
TEST = [
    *HTTP,
    "coverage>=7.10,<8",
    "hypothesis>=6.100,<7",
    "mypy-zope>=1.0.11,<2",
    "pytest>=8.2,<10",
    "pytest-twisted>=1.14.2,<2",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.17,<0.18",
]
# Beside the histogram, clients of the stores that MadKV is measured beside, and one of those stores.
BENCH = [
    "grpcio>=1.60,<2",
    "hdrhistogram>=0.10.3,<0.11",
    "hpack>=4,<5",
    "protobuf>=5,<8",
    "pysyncobj>=0.3.13,<0.4",
    "redis[hiredis]>=5.1,<9",
]
REPORT = [*BENCH, "matplotlib>=3.8,<4"]
# What the recipes need beside the project: the `just` program, a look at processes for `kill` and `bench::cpu`, and
# what `http=yes` takes.
RECIPES = [*HTTP, "psutil>=5.9,<8", "rust-just>=1.35,<2"]
# What `fuzz::run` runs on. It is for some platforms only, so the recipe installs it when it is asked for.
FUZZ = ["atheris>=3,<4"]

setup(
    name="madkv",
    version=VERSION,
    description="A replicated, partitioned, durable, linearizable key-value store on Twisted",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        "madkv",
        "madkv.bench",
        "madkv.bench.peers",
        "madkv.client",
        "madkv.manager",
        "madkv.monitor",
        "madkv.operate",
        "madkv.raft",
        "madkv.server",
        "madkv.storage",
        "madkv.testing",
        "madkv.wire",
        "twisted.plugins",
    ],
    package_data={
        "madkv": ["py.typed"],
        "madkv.bench": ["workloads/*"],
        "madkv.monitor": ["page/*"],
        "madkv.testing": ["*.c"],
    },
    install_requires=[
        "attrs>=23.2,<27",
        "cryptography>=43,<51",
        "lmdb>=3,<4",
        "sortedcontainers>=2.4,<3",
        "pyOpenSSL>=25.3,<27",
        "service-identity>=24.1,<27",
        "Twisted>=24.7,<27",
    ],
    extras_require={
        "http": HTTP,
        "test": TEST,
        "bench": BENCH,
        "report": REPORT,
        "recipes": RECIPES,
        "fuzz": FUZZ,
        "dev": TEST + REPORT + RECIPES,
    },
    entry_points={"console_scripts": ["madkv = madkv.cli:main"]},
    zip_safe=False,
)
