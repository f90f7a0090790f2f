"""The page in a real browser, where there is one: a killed leader shows, data stays data, and nothing is complained of.

`MADKV_PICTURES=DIR` keeps pictures of it there, light and dark, wide and narrow.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from madkv.testing.cluster import Cluster
from tests.browser import CHROMIUM, HOW_TO_GET, START_SECONDS_MAX, Browser
from tests.monitor.crafted import EVENTS, EVIL
from tests.processes import Process

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_GET)
SHOWN_SECONDS_MAX = 2.0
ELECTED_SECONDS_MAX = 10.0
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def open_page(browser: Browser, url: str) -> None:
    browser.open("about:blank")
    browser.wait_for("location.href === 'about:blank'", START_SECONDS_MAX)
    browser.errors.clear()
    browser.open(url)
    browser.wait_for(f"location.href === '{url}' && document.querySelectorAll('.group').length > 0", START_SECONDS_MAX)


def keep_pictures(browser: Browser, name: str) -> None:
    if directory := os.environ.get("MADKV_PICTURES"):
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                browser.look(width, height, scheme)
                browser.picture(Path(directory) / f"{name}-{size}-{scheme}.png")
    browser.look(*SIZES["wide"], "light")


def is_gone(node: str) -> str:
    return f"[...document.querySelectorAll('tr.gone th')].some((each) => each.innerText.startsWith('{node}'))"


def test_a_killed_leader_shows_within_two_seconds(tmp_path: Path, browser: Browser) -> None:
    with Cluster.local(tmp_path, 2, 3, 3, http=True) as cluster:
        browser.look(*SIZES["wide"], "light")
        open_page(browser, cluster.shape.pages()[cluster.shape.node("m.0")])
        browser.wait_for("document.getElementById('health').innerText === 'well'", START_SECONDS_MAX)
        assert browser.value("document.querySelectorAll('.group').length") == 3
        assert browser.value("document.querySelectorAll('tbody tr').length") == 9
        assert browser.value("document.querySelectorAll('.role.leader').length") == 3
        keep_pictures(browser, "well")
        leader = cluster.leader("s0")
        assert leader is not None
        cluster.process(leader).kill()
        killed = time.monotonic()
        browser.wait_for(is_gone(str(leader)), ELECTED_SECONDS_MAX)
        assert time.monotonic() - killed < SHOWN_SECONDS_MAX
        assert browser.value("document.getElementById('ailments').innerText").startswith(f"{leader} does not answer")
        keep_pictures(browser, "killed")
        browser.wait_for("document.querySelectorAll('.headless').length === 0", ELECTED_SECONDS_MAX)
        browser.wait_for(f"document.getElementById('events').innerText.includes('{leader} is lost')", SHOWN_SECONDS_MAX)
        cluster.kill(leader)
        cluster.start(leader)
        cluster.wait_until_caught_up(leader)
        browser.wait_for("document.getElementById('health').innerText === 'well'", SHOWN_SECONDS_MAX)
        browser.wait_for(f"document.getElementById('events').innerText.includes('{leader} is back')", SHOWN_SECONDS_MAX)
        keep_pictures(browser, "back")
        for width in (360, 390, 600, 800, 1280, 2000):
            browser.look(width, 800, "light")
            assert browser.value("document.documentElement.scrollWidth") <= width, "nothing is wider than the window"
        assert browser.errors == []
        # The node whose page it is goes: the page says so, and shows what it saw last.
        cluster.kill(cluster.shape.node("m.0"))
        browser.wait_for("!document.getElementById('gone').hidden", ELECTED_SECONDS_MAX)
        assert browser.value("document.querySelectorAll('tbody tr').length") == 9
        keep_pictures(browser, "gone")


def test_data_never_becomes_markup(browser: Browser) -> None:
    with Process([sys.executable, "-m", "tests.monitor.crafted"]) as daemon:
        open_page(browser, daemon.wait_for(r"(http://\S+)")[1])
        assert browser.value("document.querySelectorAll('#events li').length") == len(EVENTS)
        assert EVIL in browser.value("document.getElementById('ailments').innerText")
        assert browser.value("document.querySelectorAll('main img, main script, ul img, header span img').length") == 0
        assert browser.value("document.body.dataset.evil") is None
        assert browser.errors == []
