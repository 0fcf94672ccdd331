"""A few rows of a table for its page in Dagster's UI, with the JSON as it is sent, except that every value is masked."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import orjson

from cio_pipeline.defs.pages.tables import Row, table
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask, mask_key, printable
from cio_pipeline.tables.tables import Tables

MAX_ROWS = 5
"""The number of rows that are shown of a table."""

MAX_NAMES = 12
"""The number of names that are shown of an object."""

MAX_DEPTH = 3
"""The number of levels of objects that are shown."""

MORE = "…"
HIDDEN = "***"

AS_IT_IS = ("type", "action", "timestamp", "id")
"""The members of an operation that are not personal data: `id` is the event's."""

CUSTOMER_COLUMNS = ("key", "attributes", "timestamp", "operation")
EVENT_COLUMNS = ("key", "name", "timestamp", "operation")
REJECT_COLUMNS = ("what", "name", "reason", "event", "distinct_id", "timestamp")
POSTHOG_EVENT_COLUMNS = ("event", "distinct_id", "timestamp", "properties")


def first_rows(tables: Tables, name: str, day: str) -> dg.MetadataValue:
    """Returns the first rows of a day's table `customers`, `events`, `rejects` or `posthog_events`. Raises `StorageError`."""
    columns, to_show = TABLES_SHOWN[name]
    return table([to_show(row) for row in tables.head(name, day, MAX_ROWS, list(columns))])


def mask_operation(text: str) -> str:
    """Returns an operation's JSON with all names, and the first character of each value: `"pro"` -> `"p***"`."""
    shown = dict[str, Any]()
    for name, value in read_object(text).items():
        if name == "name":
            shown[name] = mask(value)
        elif name == "identifiers":
            shown[name] = {kind: mask_key(f"{kind}:{who}").partition(" ")[2] for kind, who in value.items()}
        else:
            shown[name] = value if name in AS_IT_IS else mask_value(value)
    return _json(shown)


def mask_value(value: Any, depth: int = 0) -> Any:
    """Returns a JSON value masked: names and structure stay, texts and numbers are cut to their first character."""
    if value is None or isinstance(value, bool):
        return value
    if depth == MAX_DEPTH and isinstance(value, dict | list):
        return MORE
    if isinstance(value, dict):
        shown = {mask(str(name)): mask_value(member, depth + 1) for name, member in list(value.items())[:MAX_NAMES]}
        return shown | ({MORE: f"{len(value) - MAX_NAMES} more"} if len(value) > MAX_NAMES else {})
    if isinstance(value, list):
        return [mask_value(element, depth + 1) for element in value[:1]] + ([MORE] if len(value) > 1 else [])
    text = str(value)
    if "@" in text:
        return mask(text)
    return printable(text[:1]) + HIDDEN if len(text) > 1 else HIDDEN


def _customer(row: Mapping[str, Any]) -> Row:
    return {
        "key": mask_key(row["key"]),
        "attributes": row["attributes"],
        "newest": _time(row),
        "operation, masked": mask_operation(row["operation"]),
    }


def _event(row: Mapping[str, Any]) -> Row:
    shown = {"time": _time(row), "key": mask_key(row["key"]), "name": mask(row["name"])}
    return {**shown, "operation, masked": mask_operation(row["operation"])}


def _reject(row: Mapping[str, Any]) -> Row:
    shown = {"what": row["what"], "name": mask(row["name"] or ""), "reason": row["reason"], "event": mask(row["event"] or "")}
    return {**shown, "distinct_id": _distinct_id(row), "time": _time(row)}


def _posthog_event(row: Mapping[str, Any]) -> Row:
    shown = {"time": _time(row), "distinct_id": _distinct_id(row), "event": mask(row["event"] or "")}
    return {**shown, "properties, masked": _properties(row["properties"])}


def _properties(text: str | None) -> str:
    try:
        return _json(mask_value(orjson.loads(text or "{}")))
    except orjson.JSONDecodeError:
        return "not JSON"


def _distinct_id(row: Mapping[str, Any]) -> str:
    return mask_key(f"id:{row['distinct_id'] or ''}").removeprefix("id ")


def _time(row: Mapping[str, Any]) -> str:
    return f"{row['timestamp']:%Y-%m-%d %H:%M:%S}"


def _json(value: Any) -> str:
    """Returns JSON with spaces, at which a page can break the line."""
    return json.dumps(value, ensure_ascii=False)


TABLES_SHOWN: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Row]]] = {
    "customers": (CUSTOMER_COLUMNS, _customer),
    "events": (EVENT_COLUMNS, _event),
    "rejects": (REJECT_COLUMNS, _reject),
    "posthog_events": (POSTHOG_EVENT_COLUMNS, _posthog_event),
}
"""The columns to read of each table, and the function that turns a row into what is shown."""
