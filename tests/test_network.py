"""Networks that can be cut: nodes in namespaces of their own, where the machine allows them."""

import subprocess
import sys

import pytest

from madkv.testing.network import is_possible
from tests.processes import ROOT

SECONDS_MAX = 60
SCRIPT = """
import socket, subprocess, sys
from madkv.testing.network import Network, enter
from madkv.testing.shape import Node

enter()
one, other = Node(0, 0), Node(0, 1)
network = Network([one, other])
ECHO = '''
import socket
server = socket.create_server(("0.0.0.0", 9000))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"here")
    connection.close()
'''
CALL = '''
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=1.0) as connection:
    assert connection.recv(4) == b"here"
'''
server = subprocess.Popen([*network.command(one), sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
server.stdout.readline()

def reached():
    call = [sys.executable, "-c", CALL, network.host(one)]
    done = [subprocess.run([*where, *call], stderr=subprocess.PIPE) for where in ((), network.command(other))]
    assert all(each.returncode == 0 or b"timed out" in each.stderr for each in done), done
    return [each.returncode == 0 for each in done]

print(reached())
for cut, mend in ((network.pull, network.plug), (network.silence, network.unsilence)):
    cut(one)
    print(reached())
    mend(one)
    print(reached())
server.kill()
server.wait()
"""


@pytest.mark.skipif(not is_possible(), reason="this machine allows no network namespaces")
def test_a_node_is_cut_off_and_connected_again() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stderr
    there, gone = "[True, True]", "[False, False]"
    assert done.stdout.splitlines() == [there, gone, there, gone, there]
    assert "madkv" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
