"""R12 and R13: from events' JSON to their data, and what else it says: given attributes (R7), what was repaired or left out.

Nearly all of it is plain (`properties.py`) and goes out as it stands. The rest is read with care, to the same end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import TOO_DEEP, UnusableJson, is_too_deep, read_object, repair_surrogates, write
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, NameRule, unset_names
from cio_pipeline.rules.columns import matches, to_list
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.properties import NAMED, members_of, value_of, without_members

REPAIRED = "half a surrogate pair became U+FFFD"
REDIRECTS = "would redirect deliveries (R13)"
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})
"""R12: properties that are no data of the event."""

DELIVERY_OVERRIDES = frozenset({"recipient", "from_address", "reply_to"})


class Findings(NamedTuple):
    """What an event's JSON holds besides its data: the given attributes, `$unset`, and what of the attributes and the data
    was left out or repaired."""

    given: dict[str, Any]
    attributes: LeftOut
    unset: Any
    data: LeftOut


class Read(NamedTuple):
    """Events' data: an Arrow array of JSON in UTF-8, null where it cannot be sent; by row, why not, and what else was
    found, if anything."""

    data: Any
    refused: dict[int, str]
    findings: dict[int, Findings]


def read(contents: Any, persons: Any, plain: Any, names: NameRule, options: Options) -> Read:
    """Reads events' properties and, where they are to be taken instead of `$set`, their persons': Arrow arrays of UTF-8.

    `plain`: which are as `properties.FACTS` says (numpy, bool). Most of these are data as they stand.
    """
    data: list[bytes | None] = []
    refused: dict[int, str] = {}
    findings: dict[int, Findings] = {}
    changes = ~plain | matches(contents, NAMED) | persons.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(changes)
    chosen = [array.take(pa.array(rows)) for array in (contents, persons)]
    for row, content, person, is_plain in zip(rows.tolist(), *map(to_list, chosen), plain[rows].tolist(), strict=True):
        found = _parted(content, person, names) if is_plain else None
        try:
            written, findings[row] = found or _read_with_care(content, person, names, options)
        except UnusableJson as reason:
            written, refused[row] = None, str(reason)
        data.append(written)
    whole = pc.replace_with_mask(contents, pa.array(changes), pa.array(data, contents.type)) if data else contents
    return Read(whole, refused, findings)


def _parted(content: bytes, person: bytes | None, names: NameRule) -> tuple[bytes, Findings] | None:
    """The data of plain JSON, and what else it says; None where it has to be read with care."""
    members = members_of(content)
    written = None if members is None else without_members(content, members)
    if members is None or written is None:
        return None
    if person is not None:
        return written, Findings(*_of_person(person, names), value_of(members.unset), [])
    given = value_of(members.given)
    return written, Findings(given if isinstance(given, dict) else {}, [], value_of(members.unset), [])


def _read_with_care(content: bytes | None, person: bytes | None, names: NameRule, options: Options) -> tuple[bytes, Findings]:
    found = _sendable(content)
    properties, repaired = repair_surrogates(content or b"", found)
    unset = properties.get("$unset")
    if person is not None:
        given, attributes = _of_person(person, names)
    else:
        raw = found.get("$set")
        given, changed = repair_surrogates(content or b"", raw if isinstance(raw, dict) else {})
        attributes = _repaired(changed, names)
    if "$unset" in repaired:
        cleared_as_they_are = set(unset_names(found["$unset"]))
        cleared = [name for name in dict.fromkeys(unset_names(unset)) if name not in cleared_as_they_are]
        attributes = attributes + _repaired(cleared, names)
    overrides = [] if options.allow_delivery_overrides else [name for name in properties if name.lower() in DELIVERY_OVERRIDES]
    data = {name: value for name, value in properties.items() if name not in NOT_DATA and name not in overrides}
    left_out = [(name, REPAIRED) for name in repaired if name not in NOT_DATA] + [(name, REDIRECTS) for name in overrides]
    return write(data), Findings(given, attributes, unset, left_out)


def _of_person(person: bytes, names: NameRule) -> tuple[dict[str, Any], LeftOut]:
    """R7: what the person's properties give, and what of them is left out or repaired; nothing where they cannot be read."""
    try:
        given, changed = repair_surrogates(person, _sendable(person))
    except UnusableJson as reason:
        return {}, [("person_properties", f"{reason} (R7)")]
    return given, _repaired(changed, names)


def _repaired(changed: list[str], names: NameRule) -> LeftOut:
    return [(name, REPAIRED) for name in changed if names(name) != EXCLUDED]


def _sendable(content: bytes | None) -> dict[str, Any]:
    found = read_object(content)
    if content and is_too_deep(content, found):
        raise UnusableJson(TOO_DEEP)
    return found
