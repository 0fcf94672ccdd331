"""The sandbox's workspace: how calls change people, and the answers to refused calls."""

import json
from typing import Any

import orjson
import pytest

from cio_pipeline.sandbox.customerio.people import FAILURE, Person
from cio_pipeline.sandbox.customerio.workspace import Workspace

NOW = 1_772_500_000
ULID = "01KJQ5XG00ABCDEFGHJKMNPQRS"


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(clock=lambda: NOW)


def identify(identifiers: dict[str, Any], attributes: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "person", "action": "identify", "identifiers": identifiers, "attributes": attributes or {}, **more}


def event(identifiers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "person", "action": "event", "identifiers": identifiers, "name": "signed up", **more}


def send(workspace: Workspace, *items: Any) -> tuple[int, dict[str, Any]]:
    return workspace.batch(json.dumps({"batch": items}).encode())


def take(workspace: Workspace, *items: Any) -> None:
    assert send(workspace, *items) == (200, {})


def person(workspace: Workspace, text: str) -> Person:
    found = workspace.person(text)
    assert found is not None
    return found


def test_ids_are_case_sensitive_and_emails_are_not(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}), identify({"id": "U1"}))
    take(workspace, identify({"email": "Ada@Example.com"}, {"plan": "pro"}), identify({"email": "ada@example.COM"}))
    assert workspace.totals() == {"people": 3, "events": 0}
    assert person(workspace, "ADA@example.com").values == {"plan": "pro"}


def test_null_clears_an_attribute_and_an_older_update_does_not_bring_it_back(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"plan": "pro", "seats": 3}, timestamp=100))
    take(workspace, identify({"id": "u1"}, {"plan": None}, timestamp=200))
    take(workspace, identify({"id": "u1"}, {"plan": "free", "seats": 4, "city": "Rome"}, timestamp=150))
    assert person(workspace, "u1").values == {"seats": 4, "city": "Rome"}


def test_an_update_without_a_timestamp_counts_as_now(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"plan": "pro"}))
    take(workspace, identify({"id": "u1"}, {"plan": "old"}, timestamp=NOW - 1))
    assert person(workspace, "u1").values == {"plan": "pro"}
    take(workspace, identify({"id": "u1"}, {"plan": "same second"}, timestamp=NOW))
    assert person(workspace, "u1").values == {"plan": "same second"}


def test_update_only_never_creates_a_person_and_is_not_an_attribute(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"_update": True, "plan": "pro"}))
    assert workspace.people() == []
    take(workspace, identify({"id": "u1"}), identify({"id": "u1"}, {"_update": True, "plan": "pro"}))
    assert person(workspace, "u1").values == {"plan": "pro"}


def test_an_event_creates_an_unknown_person_except_for_a_cio_id(workspace: Workspace) -> None:
    take(workspace, event({"id": "u1"}, timestamp=5), event({"cio_id": "nobody"}))
    (only,) = workspace.people()
    assert only.to_dict() == {
        "identifiers": {"id": "u1", "cio_id": "000000000001"},
        "attributes": {},
        "events": [{"id": None, "name": "signed up", "type": "event", "timestamp": 5, "data": {}}],
    }
    take(workspace, event({"cio_id": "000000000001"}))
    assert len(person(workspace, "u1").events) == 2


def test_an_event_id_counts_once_per_workspace(workspace: Workspace) -> None:
    take(workspace, event({"id": "u1"}, id=ULID), event({"id": "u1"}, id=ULID.lower()))
    take(workspace, event({"id": "u2"}, id=ULID, name="another"))
    assert workspace.totals() == {"people": 1, "events": 1}


def test_an_email_attribute_identifies_the_person(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"email": "ada@example.com"}), event({"email": "ADA@example.com"}))
    assert workspace.totals() == {"people": 1, "events": 1}
    take(workspace, identify({"id": "u1"}, {"email": "new@example.com"}))
    assert workspace.person("ada@example.com") is None
    assert person(workspace, "new@example.com").identifiers["id"] == "u1"


def test_an_email_that_another_person_owns_is_an_attribute_update_failure(workspace: Workspace) -> None:
    take(workspace, identify({"email": "ada@example.com"}), identify({"id": "u1"}, {"email": "first@example.com"}))
    take(workspace, identify({"id": "u1"}, {"email": "ada@example.com", "plan": "pro"}, timestamp=NOW + 1))
    stays = person(workspace, "u1")
    assert stays.values == {"email": "first@example.com", "plan": "pro"}
    assert [(activity.type, activity.name, activity.data) for activity in stays.activities] == [
        (FAILURE, "email", {"value": "ada@example.com"})
    ]
    assert workspace.totals() == {"people": 2, "events": 0}
    assert stays.events == []


def test_a_person_with_only_an_email_can_get_an_id_once_and_keeps_the_email(workspace: Workspace) -> None:
    take(workspace, identify({"email": "ada@example.com"}, {"email": None}))
    assert "email" in person(workspace, "ada@example.com").identifiers
    take(workspace, identify({"email": "ada@example.com"}, {"id": "u1"}))
    take(workspace, identify({"email": "ada@example.com"}, {"id": "u2"}))
    assert person(workspace, "ada@example.com").identifiers["id"] == "u1"
    take(workspace, identify({"id": "u1"}, {"email": None}))
    assert "email" not in person(workspace, "u1").identifiers


def test_a_bad_item_is_reported_and_the_others_are_accepted(workspace: Workspace) -> None:
    status, answer = send(workspace, event({"id": "before"}), event({"id": "u1"}, name=" "), event({"id": "after"}))
    blank = {"batch_index": 1, "reason": "required", "field": "name", "message": "event name must not be blank"}
    assert (status, answer) == (207, {"errors": [blank]})
    assert workspace.totals() == {"people": 2, "events": 2}


def test_a_malformed_batch_is_refused_with_400(workspace: Workspace) -> None:
    status, answer = workspace.batch(b'{"batch":[]}')
    assert status == 400
    assert [set(error) for error in answer["errors"]] == [{"reason", "field", "message"}]
    assert workspace.people() == []


def test_values_nested_too_deeply_to_be_shown_are_refused(workspace: Workspace) -> None:
    def nested(depth: int) -> Any:
        return orjson.loads("[" * depth + "]" * depth)

    for depth in range(240, 260):
        send(
            workspace,
            event({"id": "u1"}, attributes={"a": nested(depth)}),
            identify({"id": "u1"}, {"b": nested(depth)}),
        )
    assert 0 < workspace.totals()["events"] < 20
    assert orjson.dumps([found.to_dict() for found in workspace.people()])


def test_v1_tells_the_kind_of_identifier_by_its_form(workspace: Workspace) -> None:
    for identifier in ("u1", "ada@example.com", "cio_000000000001", "cio_none"):
        assert workspace.customer_event(identifier, b'{"name":"e","timestamp":7}') == (200, {})
    assert [found.identifiers.get("id") for found in workspace.people()] == ["u1", None]
    assert [event.timestamp for event in person(workspace, "u1").events] == [7, 7], "its cio_id is cio_000000000001"


def test_v1_accepts_an_event_of_100_000_bytes_and_has_its_own_format_of_errors(workspace: Workspace) -> None:
    data = {"text": "x" * (100_000 - len('{"text":""}'))}
    call = {"name": "big", "type": "page", "id": ULID, "timestamp": 9, "data": data}
    assert workspace.customer_event("u1", orjson.dumps(call)) == (200, {})
    assert person(workspace, "u1").events[0].type == "page"
    call["data"] = {"text": data["text"] + "x"}
    message = "event data cannot be longer than 100000 bytes"
    assert workspace.customer_event("u1", orjson.dumps(call)) == (400, {"meta": {"error": message}})
    assert workspace.customer_event("u1", b'{"name":"e","type":"click"}')[0] == 400
    assert workspace.customer_event("u1", b"not json")[0] == 400


def test_the_search_finds_ids_emails_and_names_the_last_changed_first(workspace: Workspace) -> None:
    take(workspace, *[identify({"id": f"u{n}"}, {"name": f"Name {n}"}) for n in range(5)])
    take(workspace, identify({"email": "ada@example.com"}), event({"id": "u1"}))
    assert [found.identifiers.get("id") for found in workspace.people()] == ["u1", None, "u4", "u3", "u2", "u0"]
    rows, found = workspace.search("NAME", 1, 3)
    assert ([row.identifiers["id"] for row in rows], found) == (["u4", "u3"], 5)
    assert workspace.search("ADA@", 0, None)[1] == 1


def test_people_are_returned_as_copies(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"plan": "pro"}))
    workspace.people()[0].attributes.clear()
    assert person(workspace, "u1").values == {"plan": "pro"}
