"""Tasks by name, in the documented order; probes by prefix."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mera_server.catalog import Catalog, Probe

from merasteer.errors import UnknownProbe


def test_the_listing_puts_the_certified_first(catalog: Catalog) -> None:
    assert [row.model_dump() for row in catalog.listing().tasks] == [
        {"name": "good", "labels": ["ham", "spam"], "probe": "aa" * 32, "certified": True, "alpha": 0.3},
        {"name": "weak", "labels": ["ham", "spam"], "probe": "bb" * 32, "certified": False, "alpha": None},
        {"name": "bare", "labels": ["ham", "spam"], "probe": None, "certified": False, "alpha": None},
    ]


def test_another_runtime_is_not_certified(catalog: Catalog, good: Probe) -> None:
    other = replace(
        catalog, latest={**catalog.latest, "good": replace(good, mismatch="dtype float16 and attention sdpa")}
    )
    assert not other.listing().tasks[0].certified


def test_probes_by_prefix(catalog: Catalog, good: Probe) -> None:
    assert catalog.probe("aaa") is good
    with pytest.raises(UnknownProbe):
        catalog.probe("c")


def test_a_probe_that_is_not_resident_is_unknown(catalog: Catalog, good: Probe) -> None:
    with pytest.raises(UnknownProbe):
        replace(catalog, probes={good.digest: good}).probe("bb")
