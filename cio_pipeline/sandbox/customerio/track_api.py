"""Parses the calls of the Track API, and checks them by its rules.

The limits are Customer.io's documented ones, in bytes. Where its documentation is silent, the sandbox is strict, so that a
mistake shows here rather than in a real workspace: an event `id` must be a ULID, and a `timestamp` whole Unix seconds
(Customer.io itself replaces a timestamp that it cannot read by the current time).
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

BATCH_BYTES = 500_000
MAX_ITEM_BYTES = 32_000
MAX_ID_BYTES = 150
MAX_ATTRIBUTE_NAME_BYTES = 150
MAX_ATTRIBUTE_VALUE_BYTES = 1_000
ATTRIBUTES_PER_CALL = 300
MAX_EVENT_NAME_BYTES = 100
EVENT_DATA_BYTES = 100_000
LATEST_TIMESTAMP = 10**11

EVENT_TYPES = ("event", "page", "screen")
IDENTIFIERS = ("id", "email", "cio_id")
# These are options of the identify call, not attributes of the person.
DIRECTIVES = frozenset({"_update", "_timestamp", "_created_in_customerio_at", "cio_relationships"})
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.IGNORECASE | re.ASCII)

Identifier = tuple[str, str]


class InvalidRequestError(Exception):
    """The Track API refuses the call, with the reason, field and message of its v2 errors."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.error = {"reason": reason, "field": field, "message": message}


@dataclass(frozen=True)
class Identify:
    """A checked identify call."""

    identifier: Identifier
    attributes: dict[str, Any]
    timestamp: int | None
    update_only: bool


@dataclass(frozen=True)
class Track:
    """A checked event, page or screen call."""

    identifier: Identifier
    type: str
    name: str
    data: dict[str, Any]
    timestamp: int | None
    id: str | None


def compact_size(value: Any) -> int:
    """Returns the size of a value in bytes: of text in UTF-8, of anything else as compact JSON."""
    if isinstance(value, str):
        return len(value.encode())
    try:
        # orjson writes 254 levels; the four around the value are those of `GET /sandbox/people`.
        return len(orjson.dumps([[[[value]]]])) - 8
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError("invalid", "", "value is nested too deeply") from error


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses the JSON object in a body. Anything else is refused, including invalid UTF-8 and unpaired surrogates."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError("invalid", "", f"body is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError("invalid", "", "body must be a JSON object")
    return parsed


def parse_batch(body: bytes) -> list[Any]:
    """Parses the items of a `/api/v2/batch` body, which must be smaller than 500 kB and have at least one."""
    if len(body) >= BATCH_BYTES:
        raise InvalidRequestError("invalid", "batch", f"batch request must be smaller than {BATCH_BYTES} bytes")
    items = parse_object(body).get("batch")
    if not isinstance(items, list) or not items:
        raise InvalidRequestError("required", "batch", "batch must be an array of at least one item")
    return items


def parse_item(item: Any) -> Identify | Track:
    """Parses a v2 operation on a person, of at most 32 kB."""
    if not isinstance(item, dict):
        raise InvalidRequestError("invalid", "", "item must be an object")
    if compact_size(item) > MAX_ITEM_BYTES:
        raise InvalidRequestError("invalid", "", f"item cannot be longer than {MAX_ITEM_BYTES} bytes")
    if item.get("type") != "person":
        raise InvalidRequestError("invalid" if "type" in item else "required", "type", "type must be 'person'")
    action = item.get("action")
    if action != "identify" and action not in EVENT_TYPES:
        message = "action must be identify, event, page or screen"
        raise InvalidRequestError("invalid" if "action" in item else "required", "action", message)
    identifier = parse_identifiers(item.get("identifiers"))
    if action == "identify":
        return parse_identify(identifier, item)
    return parse_track(identifier, item, type_=action, data_key="attributes")


def parse_customer_event(identifier: str, body: bytes) -> Track:
    """Parses a v1 event, page or screen."""
    call = parse_object(body)
    return parse_track(parse_path_identifier(identifier), call, type_=call.get("type", "event"), data_key="data")


def parse_identifiers(identifiers: Any) -> Identifier:
    """Parses the single identifier of a v2 item: `id`, `email` or `cio_id`."""
    if not isinstance(identifiers, dict) or len(identifiers) != 1:
        raise InvalidRequestError("required", "identifiers", "identifiers must be an object of exactly one identifier")
    kind, value = next(iter(identifiers.items()))
    if kind not in IDENTIFIERS:
        raise InvalidRequestError("invalid", f"identifiers.{kind}", f"identifier must be one of {', '.join(IDENTIFIERS)}")
    check_identifier(kind, value, f"identifiers.{kind}")
    return kind, value


def parse_path_identifier(text: str) -> Identifier:
    """Parses the identifier in a v1 path, whose kind Customer.io guesses from its form."""
    if "@" in text:
        identifier = ("email", text)
    elif text.startswith("cio_"):
        identifier = ("cio_id", text.removeprefix("cio_"))
    else:
        identifier = ("id", text)
    check_identifier(*identifier, "identifier")
    return identifier


def check_identifier(kind: str, value: Any, where: str) -> None:
    """Refuses an identifier that is not text, is blank, or is an id of more than 150 bytes."""
    if not isinstance(value, str):
        raise InvalidRequestError("invalid", where, f"{kind} attribute must be a string value")
    if not value.strip():
        raise InvalidRequestError("required", where, f"{kind} attribute cannot be an empty string")
    if kind == "id" and compact_size(value) > MAX_ID_BYTES:
        raise InvalidRequestError("invalid", where, f"id attribute cannot be longer than {MAX_ID_BYTES} bytes")


def parse_identify(identifier: Identifier, item: dict[str, Any]) -> Identify:
    """Parses an identify operation, and checks its attributes."""
    attributes = item.get("attributes", {})
    if not isinstance(attributes, dict):
        raise InvalidRequestError("invalid", "attributes", "attributes must be an object")
    described = {name: value for name, value in attributes.items() if name not in DIRECTIVES}
    if len(described) > ATTRIBUTES_PER_CALL:
        message = f"cannot identify more than {ATTRIBUTES_PER_CALL} attributes in one request"
        raise InvalidRequestError("invalid", "attributes", message)
    for name, value in described.items():
        check_attribute(name, value)
    return Identify(identifier, described, parse_timestamp(item, "timestamp"), attributes.get("_update") is True)


def check_attribute(name: str, value: Any) -> None:
    """Refuses an attribute whose name or value is too long, or an invalid `id`."""
    if compact_size(name) > MAX_ATTRIBUTE_NAME_BYTES:
        message = f"attribute name cannot be longer than {MAX_ATTRIBUTE_NAME_BYTES} bytes"
        raise InvalidRequestError("invalid", "attributes", message)
    if compact_size(value) > MAX_ATTRIBUTE_VALUE_BYTES:
        message = f"value for attribute '{name}' cannot be longer than {MAX_ATTRIBUTE_VALUE_BYTES} bytes"
        raise InvalidRequestError("invalid", f"attributes.{name}", message)
    if name == "id":
        check_identifier("id", value, "attributes.id")


def parse_track(identifier: Identifier, call: dict[str, Any], *, type_: Any, data_key: str) -> Track:
    """Parses an event, page or screen. data_key: of the event's data, which is `attributes` in v2, `data` in v1."""
    name, data, ulid = call.get("name"), call.get(data_key, {}), call.get("id")
    if type_ not in EVENT_TYPES:
        raise InvalidRequestError("invalid", "type", "type must be event, page or screen")
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequestError("required", "name", "event name must not be blank")
    if compact_size(name.strip()) > MAX_EVENT_NAME_BYTES:
        raise InvalidRequestError("invalid", "name", f"event name cannot be longer than {MAX_EVENT_NAME_BYTES} bytes")
    if not isinstance(data, dict):
        raise InvalidRequestError("invalid", data_key, "event data must be a hash")
    if compact_size(data) > EVENT_DATA_BYTES:
        raise InvalidRequestError("invalid", data_key, f"event data cannot be longer than {EVENT_DATA_BYTES} bytes")
    if "id" in call and not (isinstance(ulid, str) and ULID.fullmatch(ulid)):
        raise InvalidRequestError("invalid", "id", "event id must be a valid ULID")
    return Track(identifier, type_, name.strip(), data, parse_timestamp(call, "timestamp"), ulid and ulid.upper())


def parse_timestamp(call: dict[str, Any], key: str) -> int | None:
    """Parses whole Unix seconds, or returns None if there are none. Milliseconds and times before 1970 are refused."""
    timestamp = call.get(key)
    if key in call and (type(timestamp) is not int or not 0 <= timestamp < LATEST_TIMESTAMP):
        raise InvalidRequestError("invalid", key, f"{key} must be an integer of Unix seconds")
    return timestamp
