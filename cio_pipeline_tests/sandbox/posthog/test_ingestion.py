"""The PostHog sandbox stores what clients send as PostHog does."""

import gzip
import json
from typing import Any

import pytest
import requests

from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.ingestion import Ingestion

UUID = "018f3173-7000-7421-831e-e849e8bb6ffe"


def body(*events: dict[str, Any]) -> bytes:
    return json.dumps({"api_key": "phc", "batch": [{"properties": {}, **event} for event in events]}).encode()


def test_what_a_client_sets_beside_the_properties_is_stored_in_them() -> None:
    [stored] = Ingestion().stored(body({"event": "$set", "distinct_id": "u1", "$set": {"plan": "pro"}, "uuid": UUID}))
    assert (stored["uuid"], stored["properties"], stored["person_properties"]) == (
        UUID,
        {"$set": {"plan": "pro"}},
        {"plan": "pro"},
    )


@pytest.mark.parametrize(
    "merge",
    [
        {"event": "$identify", "distinct_id": "u1", "properties": {"$anon_distinct_id": "visitor"}},
        {"event": "$create_alias", "distinct_id": "visitor", "properties": {"alias": "u1"}},
    ],
)
def test_two_ids_of_one_person_share_properties(merge: dict[str, Any]) -> None:
    before = {"event": "$set", "distinct_id": "visitor", "$set": {"plan": "pro"}, "$set_once": {"plan": "free", "first": 1}}
    after = {"event": "visit", "distinct_id": "u1"}
    assert Ingestion().stored(body(before, merge, after))[2]["person_properties"] == {"plan": "pro", "first": 1}


def test_a_personless_event_neither_has_nor_sets_person_properties() -> None:
    personless = {"event": "a", "distinct_id": "u1", "properties": {"$process_person_profile": False, "$set": {"plan": "pro"}}}
    first, second = Ingestion().stored(body(personless, {"event": "b", "distinct_id": "u1"}))
    assert (first["person_properties"], second["person_properties"]) == ({}, {})


def test_the_endpoints_of_posthogs_clients_are_served() -> None:
    event = {"event": "visit", "distinct_id": "u1", "properties": {}}
    with posthog.serve() as server:
        assert requests.post(f"{server.url}/batch/", data=gzip.compress(body(event)), timeout=5).json() == {"status": 1}
        assert requests.post(f"{server.url}/i/v0/e/", json=event, timeout=5).ok
        assert requests.post(f"{server.url}/capture", json=event, timeout=5).ok
        assert [requests.post(f"{server.url}/e", data=bad, timeout=5).status_code for bad in (b"{", b"[]", b"\x1f\x8b")] == [
            400
        ] * 3
        assert server.project.page().strip().endswith(" 3")
