"""The calls that the sandbox's Track API accepts, and those that it refuses."""

from typing import Any

import orjson
import pytest

from cio_pipeline.sandbox.customerio.track_api import (
    Identify,
    InvalidRequestError,
    Track,
    parse_batch,
    parse_customer_event,
    parse_item,
)


def identify(identifiers: dict[str, Any], attributes: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "person", "action": "identify", "identifiers": identifiers, "attributes": attributes or {}, **more}


def event(identifiers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "person", "action": "event", "identifiers": identifiers, "name": "signed up", **more}


def padded(size: int) -> dict[str, Any]:
    """An event whose compact JSON has exactly this many bytes."""
    bare = len(orjson.dumps(event({"id": "u1"}, attributes={"text": ""})))
    return event({"id": "u1"}, attributes={"text": "x" * (size - bare)})


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
def test_a_bad_item_is_refused_by_the_field(item: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_item(item)
    assert refused.value.error["field"] == field
    assert refused.value.error["reason"] in ("invalid", "required")
    assert refused.value.error["message"]


def test_everything_just_within_its_limit_is_accepted() -> None:
    attributes: dict[str, Any] = {"é" * 75: "é" * 500, "list": ["x" * 996]}
    attributes |= {f"a{n}": n for n in range(298)}
    assert parse_item(identify({"id": "é" * 75}, {**attributes, "_update": False})) == Identify(
        ("id", "é" * 75), attributes, None, update_only=False
    )
    assert parse_item(padded(32_000))
    ulid = "7" + "Z" * 25
    assert parse_item(event({"id": "u1"}, name=f" {'é' * 50} ", id=ulid.lower(), timestamp=0)) == Track(
        ("id", "u1"), "event", "é" * 50, {}, 0, ulid
    )


def test_a_batch_is_smaller_than_500_000_bytes() -> None:
    items = [padded(31_000) for _ in range(16)]
    room = 500_000 - len(orjson.dumps({"batch": items})) - 1
    full = orjson.dumps({"batch": [*items, padded(room)]})
    assert len(full) == 500_000
    with pytest.raises(InvalidRequestError, match="smaller than 500000 bytes"):
        parse_batch(full)
    assert len(parse_batch(orjson.dumps({"batch": [*items, padded(room - 1)]}))) == 17


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
def test_a_body_that_is_not_a_batch_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_batch(body)


@pytest.mark.parametrize(
    ("text", "identifier"),
    [("u1", ("id", "u1")), ("ada@example.com", ("email", "ada@example.com")), ("cio_0a", ("cio_id", "0a"))],
)
def test_the_form_of_an_identifier_in_a_v1_path_tells_its_kind(text: str, identifier: tuple[str, str]) -> None:
    assert parse_customer_event(text, b'{"name":"e","type":"page"}') == Track(identifier, "page", "e", {}, None, None)
