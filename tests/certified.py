"""Certificates for tests, good ones and bad ones, and line clients that show them."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from madkv.testing import certificates
from madkv.testing.certificates import Authority, files
from madkv.tls import TLSFiles, name_of
from tests.processes import Process

LOOPBACK = "127.0.0.1"
NODES = ("s0", "s0.0", "s0.1", "s0.2", "m.0")


class Certificates:
    """A directory of them: of some nodes, a client and an operator; one that has expired, and those of another CA."""

    def __init__(self, root: Path, nodes: Iterable[str] = NODES) -> None:
        self.directory = root / "certificates"
        certificates.make(self.directory, {node: [LOOPBACK] for node in nodes}, ["client"])
        self._authority = Authority(self.directory)
        self.issue("expired", "madkv://client/expired", days=-1, is_node=False)
        other = root / "other"
        certificates.make(other, {"s0": [LOOPBACK]}, ["client"])
        theirs, mine = files(other, "client"), self.of("client")
        self.of_another_ca = TLSFiles(mine.ca, theirs.certificate, theirs.key)
        """It trusts the CA of the rest."""
        self.trusting_another_ca = TLSFiles(theirs.ca, mine.certificate, mine.key)

    def of(self, name: str) -> TLSFiles:
        """The files of a node or client."""
        return files(self.directory, name)

    def words(self, name: str) -> list[str]:
        """The same as options."""
        return certificates.options_of(self.directory, name)

    def issue(self, file: str, uri: str, hosts: Iterable[str] = (), days: int = 365, is_node: bool = True) -> TLSFiles:
        """One more certificate of the same CA."""
        self._authority.issue(self.directory, file, uri, hosts, days, is_node)
        return self.of(file)

    def renew(self, node: str) -> None:
        """Put another certificate and key of the same node in the place of those that are there."""
        new = self.issue(f"{node}-new", name_of(node), [LOOPBACK])
        old = self.of(node)
        Path(new.key).rename(old.key)
        Path(new.certificate).rename(old.certificate)


def options(tls: TLSFiles) -> list[str]:
    """Files as options of the command line."""
    return ["--tls-ca", tls.ca, "--tls-cert", tls.certificate, "--tls-key", tls.key]


def line_client(scratch: Path, *words: str) -> Process:
    """A line client that makes one call, and says on stderr what keeps it waiting."""
    lines = scratch / "lines"
    lines.write_text("GET key\n")
    command = shlex.join([sys.executable, "-m", "madkv.client", *words])
    return Process(["/bin/sh", "-c", f"exec {command} < {shlex.quote(str(lines))}"])
