"""Protects the sandbox workspace: what the Track API takes and refuses, in which words, and what people become."""

import json
from typing import Any

import orjson
import pytest

from cio_pipeline.sandbox.workspace import FAILURE, Person, Workspace

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


def padded(size: int) -> dict[str, Any]:
    """An event whose compact JSON has exactly this many bytes."""
    bare = len(orjson.dumps(event({"id": "u1"}, attributes={"text": ""})))
    return event({"id": "u1"}, attributes={"text": "x" * (size - bare)})


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


def test_update_only_never_creates_and_is_no_attribute(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"_update": True, "plan": "pro"}))
    assert workspace.people() == []
    take(workspace, identify({"id": "u1"}), identify({"id": "u1"}, {"_update": True, "plan": "pro"}))
    assert person(workspace, "u1").values == {"plan": "pro"}


def test_an_event_creates_an_unknown_person_but_an_unknown_cio_id_is_nobody(workspace: Workspace) -> None:
    take(workspace, event({"id": "u1"}, timestamp=5), event({"cio_id": "nobody"}))
    (only,) = workspace.people()
    assert only.to_dict() == {
        "identifiers": {"id": "u1", "cio_id": "000000000001"},
        "attributes": {},
        "events": [{"id": None, "name": "signed up", "type": "event", "timestamp": 5, "data": {}}],
    }
    take(workspace, event({"cio_id": "000000000001"}))
    assert len(person(workspace, "u1").events) == 2


def test_an_event_id_counts_once_in_the_whole_workspace(workspace: Workspace) -> None:
    take(workspace, event({"id": "u1"}, id=ULID), event({"id": "u1"}, id=ULID.lower()))
    take(workspace, event({"id": "u2"}, id=ULID, name="another"))
    assert workspace.totals() == {"people": 1, "events": 1}


def test_an_email_attribute_makes_the_person_known_by_that_email(workspace: Workspace) -> None:
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


def test_an_email_person_can_be_given_an_id_once_and_keeps_its_only_email(workspace: Workspace) -> None:
    take(workspace, identify({"email": "ada@example.com"}, {"email": None}))
    assert "email" in person(workspace, "ada@example.com").identifiers
    take(workspace, identify({"email": "ada@example.com"}, {"id": "u1"}))
    take(workspace, identify({"email": "ada@example.com"}, {"id": "u2"}))
    assert person(workspace, "ada@example.com").identifiers["id"] == "u1"
    take(workspace, identify({"id": "u1"}, {"email": None}))
    assert "email" not in person(workspace, "u1").identifiers


@pytest.mark.parametrize(
    ("item", "field"),
    [
        pytest.param("text", "", id="no object"),
        pytest.param({"action": "event"}, "type", id="no type"),
        pytest.param({"type": "object", "action": "identify"}, "type", id="not a person"),
        pytest.param({"type": "person"}, "action", id="no action"),
        pytest.param({"type": "person", "action": ["event"]}, "action", id="unknown action"),
        pytest.param({"type": "person", "action": "event", "name": "e"}, "identifiers", id="no identifiers"),
        pytest.param(identify({}), "identifiers", id="empty identifiers"),
        pytest.param(identify({"id": "u1", "email": "a@example.com"}), "identifiers", id="two identifiers"),
        pytest.param(identify({"id": 7}), "identifiers.id", id="id no text"),
        pytest.param(identify({"email": " "}), "identifiers.email", id="blank email"),
        pytest.param(identify({"anonymous_id": "a"}), "identifiers.anonymous_id", id="unknown identifier"),
        pytest.param(identify({"id": "é" * 75 + "x"}), "identifiers.id", id="id of 151 bytes"),
        pytest.param(identify({"id": "u1"}, ["plan"]), "attributes", id="attributes no object"),
        pytest.param(identify({"id": "u1"}, {"é" * 75 + "x": 1}), "attributes", id="attribute name of 151 bytes"),
        pytest.param(identify({"id": "u1"}, {"a": "é" * 500 + "x"}), "attributes.a", id="text of 1001 bytes"),
        pytest.param(identify({"id": "u1"}, {"a": ["x" * 997]}), "attributes.a", id="list of 1001 bytes"),
        pytest.param(identify({"id": "u1"}, {f"a{n}": n for n in range(301)}), "attributes", id="301 attributes"),
        pytest.param(identify({"id": "u1"}, timestamp="2026-03-02"), "timestamp", id="timestamp as text"),
        pytest.param(event({"id": "u1"}, timestamp=1.5), "timestamp", id="timestamp with a fraction"),
        pytest.param(event({"id": "u1"}, timestamp=True), "timestamp", id="timestamp true"),
        pytest.param(event({"id": "u1"}, timestamp=1_772_500_000_000), "timestamp", id="timestamp in milliseconds"),
        pytest.param(event({"id": "u1"}, name=" "), "name", id="blank name"),
        pytest.param(event({"id": "u1"}, name="é" * 50 + "x"), "name", id="name of 101 bytes"),
        pytest.param(event({"id": "u1"}, attributes=[]), "attributes", id="data no object"),
        pytest.param(event({"id": "u1"}, id="01KJQ5XG00ABCDEFGHJKMNPQRU"), "id", id="letter U in the ULID"),
        pytest.param(event({"id": "u1"}, id="81KJQ5XG00ABCDEFGHJKMNPQRS"), "id", id="ULID above 128 bits"),
        pytest.param(event({"id": "u1"}, id="0198c0de-0000-7000-8000-000000000001"), "id", id="UUID for a ULID"),
        pytest.param(padded(32_001), "", id="item of 32,001 bytes"),
    ],
)
def test_a_bad_item_is_named_and_the_rest_is_taken(workspace: Workspace, item: Any, field: str) -> None:
    status, answer = send(workspace, event({"id": "before"}), item, event({"id": "after"}))
    (error,) = answer["errors"]
    assert status == 207
    assert (error["batch_index"], error["field"]) == (1, field)
    assert error["reason"] in ("invalid", "required")
    assert error["message"]
    assert workspace.totals() == {"people": 2, "events": 2}


def test_everything_just_within_its_limit_is_taken(workspace: Workspace) -> None:
    attributes: dict[str, Any] = {"é" * 75: "é" * 500, "list": ["x" * 996]}
    attributes |= {f"a{n}": n for n in range(298)}
    take(workspace, identify({"id": "é" * 75}, {**attributes, "_update": False}), padded(32_000))
    take(workspace, event({"id": "u1"}, name=f" {'é' * 50} ", id="7" + "Z" * 25, timestamp=0))
    assert len(person(workspace, "é" * 75).values) == 300
    assert person(workspace, "u1").events[-1].name == "é" * 50


def test_a_full_batch_is_refused_with_400(workspace: Workspace) -> None:
    items = [padded(31_000) for _ in range(16)]
    room = 500_000 - len(orjson.dumps({"batch": items})) - 1
    full = orjson.dumps({"batch": [*items, padded(room)]})
    assert len(full) == 500_000
    assert workspace.batch(full)[0] == 400
    assert workspace.totals()["events"] == 0
    assert workspace.batch(orjson.dumps({"batch": [*items, padded(room - 1)]})) == (200, {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"batch":[]}',
        b'{"batch":{}}',
        b'{"batch":[NaN]}',
        b'{"batch":["\\ud800"]}',
        b'{"batch":["\xff"]}',
        b'{"batch":[' + b"[" * 2000 + b"]" * 2000 + b"]}",
    ],
)
def test_a_malformed_whole_is_refused_with_400(workspace: Workspace, body: bytes) -> None:
    status, answer = workspace.batch(body)
    assert status == 400
    assert [set(error) for error in answer["errors"]] == [{"reason", "field", "message"}]


def test_what_is_nested_too_deeply_to_be_shown_is_refused(workspace: Workspace) -> None:
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


def test_an_entity_is_one_item_and_its_errors_have_no_index(workspace: Workspace) -> None:
    assert workspace.entity(orjson.dumps(event({"id": "u1"}))) == (200, {})
    status, answer = workspace.entity(orjson.dumps(event({"id": "u1"}, name="")))
    assert (status, answer["errors"][0]) == (
        400,
        {"reason": "required", "field": "name", "message": "event name must not be blank"},
    )


def test_v1_reads_the_kind_of_identifier_from_its_shape(workspace: Workspace) -> None:
    for identifier in ("u1", "ada@example.com", "cio_000000000001", "cio_none"):
        assert workspace.customer(identifier, b'{"plan":"pro","_timestamp":7}') == (200, {})
    assert [found.identifiers.get("id") for found in workspace.people()] == ["u1", None]
    assert person(workspace, "u1").attributes["plan"].set_at == 7


def test_v1_takes_an_event_of_100_000_bytes_and_refuses_in_its_own_shape(workspace: Workspace) -> None:
    data = {"text": "x" * (100_000 - len('{"text":""}'))}
    call = {"name": "big", "type": "page", "id": ULID, "timestamp": 9, "data": data}
    assert workspace.customer_event("u1", orjson.dumps(call)) == (200, {})
    assert person(workspace, "u1").events[0].type == "page"
    call["data"] = {"text": data["text"] + "x"}
    message = "event data cannot be longer than 100000 bytes"
    assert workspace.customer_event("u1", orjson.dumps(call)) == (400, {"meta": {"error": message}})
    assert workspace.customer_event("u1", b'{"name":"e","type":"click"}')[0] == 400
    assert workspace.customer("u1", b"not json")[0] == 400


def test_the_search_finds_ids_emails_and_names_and_the_latest_change_comes_first(workspace: Workspace) -> None:
    take(workspace, *[identify({"id": f"u{n}"}, {"name": f"Name {n}"}) for n in range(5)])
    take(workspace, identify({"email": "ada@example.com"}), event({"id": "u1"}))
    assert [found.identifiers.get("id") for found in workspace.people()] == ["u1", None, "u4", "u3", "u2", "u0"]
    rows, found = workspace.search("NAME", 1, 3)
    assert ([row.identifiers["id"] for row in rows], found) == (["u4", "u3"], 5)
    assert workspace.search("ADA@", 0, None)[1] == 1


def test_what_is_read_is_a_copy(workspace: Workspace) -> None:
    take(workspace, identify({"id": "u1"}, {"plan": "pro"}))
    workspace.people()[0].attributes.clear()
    assert person(workspace, "u1").values == {"plan": "pro"}
