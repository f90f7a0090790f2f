"""What daemons of real processes answer over HTTP, for tests."""

import json
import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

SECONDS_MAX = 60.0

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""By the name of a sample and its labels, sorted."""


def get(url: str, path: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status, headers with lower-case names, and body."""
    request = urllib.request.Request(url.rstrip("/") + "/" + path.lstrip("/"), method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
            return (
                answer.status,
                {name.lower(): value for name, value in answer.headers.items()},
                answer.read().decode(),
            )
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read().decode()


def get_json(url: str, path: str) -> tuple[int, Any]:
    """Status and what the body says."""
    code, headers, body = get(url, path)
    assert headers["content-type"] == "application/json", body
    return code, json.loads(body)


def samples(url: str) -> Samples:
    """All metrics of a daemon, as Prometheus would read them."""
    code, headers, body = get(url, "/metrics")
    assert (code, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found: Samples = {}
    for family in text_string_to_metric_families(body):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name} {labels} comes twice"
            found[sample.name][labels] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """One of them."""
    return found[name][tuple(sorted(labels.items()))]
