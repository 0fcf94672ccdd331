"""R7 to R11: which attributes an event gives its customer. Those about consent (R19) are in `consent.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from cio_pipeline.json_text import write
from cio_pipeline.rules.consent import is_consent, without_disallowed_consent
from cio_pipeline.rules.limits import MAX_ATTRIBUTE_NAME_BYTES, MAX_ATTRIBUTE_VALUE_BYTES, MAX_ATTRIBUTES
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import cut, is_email, unix_seconds

ALWAYS_KEPT = ("email", "identifier", "created_at")

SPECIAL_NAMES = frozenset(
    ["id", "cio_id", "identifier", "anonymous_id", "_update", "_timestamp", "_created_in_customerio_at", "cio_relationships"]
)
"""R8: names to which Customer.io gives a meaning of its own."""

EXCLUDED = "left out by CIO_EXCLUDE_ATTRIBUTES"

WhyLeftOut = Callable[[str], "str | None"]
"""A function from an attribute's name to the reason why it is left out, or None."""

LeftOut = list[tuple[str, str]]
"""(name, reason) of each attribute that was left out, cut or repaired."""


def name_rule(options: Options) -> WhyLeftOut:
    """Returns the function that says why an attribute is left out because of its name. It caches its results."""

    @cache
    def reason(name: str) -> str | None:
        if any(fnmatchcase(name, pattern) for pattern in options.exclude_attributes):
            return EXCLUDED
        if name in SPECIAL_NAMES:
            return "has a special meaning in Customer.io (R8)"
        if len(name.encode()) > MAX_ATTRIBUTE_NAME_BYTES:
            return f"name is over {MAX_ATTRIBUTE_NAME_BYTES} bytes (R10)"
        return None

    return reason


def attributes_of(
    given: dict[str, Any], unset: Any, why_left_out: WhyLeftOut, options: Options
) -> tuple[dict[str, Any], LeftOut]:
    """Returns the attributes that an event sets, None for one that it clears (R11); and those left out or cut, and why.

    given: the given attributes (R7); unset: the value of the event's `$unset`.
    """
    attributes: dict[str, Any] = {}
    passed, left_out = _allowed(given, why_left_out, options)
    for name, value in passed.items():
        if reason := why_left_out(name):
            left_out.append((name, reason))
        elif name == "email" and not is_email(value):
            left_out.append((name, "is not a valid email (R2)"))
        else:
            _set(name, value, attributes, left_out)
    if unset:
        passed, about_consent = _allowed(dict.fromkeys(unset_names(unset)), why_left_out, options)
        left_out += about_consent
        for name in passed:
            reason = why_left_out(name) or ("is always the last valid one (R7)" if name == "email" else None)
            if reason:
                left_out.append((name, reason))
            else:
                attributes[name] = None
    return attributes, [(name, reason) for name, reason in left_out if reason != EXCLUDED] if left_out else left_out


def _allowed(given: dict[str, Any], why_left_out: WhyLeftOut, options: Options) -> tuple[dict[str, Any], LeftOut]:
    """Returns the attributes that CIO_EXCLUDE_ATTRIBUTES and R19 let pass, and those that R19 leaves out."""
    if options.exclude_attributes:
        given = {name: value for name, value in given.items() if why_left_out(name) != EXCLUDED}
    return without_disallowed_consent(given, options.allow_consent)


def limit_attributes(attributes: dict[str, Any]) -> tuple[dict[str, Any], LeftOut]:
    """R10: the first 300 attributes, and the others as left out. `email`, `identifier`, `created_at` and those about consent
    come first, the rest in order of appearance."""
    first = [name for name in ALWAYS_KEPT if name in attributes] + [name for name in attributes if is_consent(name)]
    ordered = {name: attributes[name] for name in first} | attributes
    if len(ordered) <= MAX_ATTRIBUTES:
        return ordered, []
    names = list(ordered)
    beyond = [(name, f"beyond {MAX_ATTRIBUTES} attributes (R10)") for name in names[MAX_ATTRIBUTES:]]
    return {name: attributes[name] for name in names[:MAX_ATTRIBUTES]}, beyond


def _set(name: str, value: Any, attributes: dict[str, Any], left_out: LeftOut) -> None:
    if name == "created_at":
        value = unix_seconds(value)
        if value is None:
            left_out.append((name, "is not a time (R9)"))
            return
    if isinstance(value, str):
        if len(value) * 4 > MAX_ATTRIBUTE_VALUE_BYTES and len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            value = cut(value, MAX_ATTRIBUTE_VALUE_BYTES)
            left_out.append((name, f"text cut to {MAX_ATTRIBUTE_VALUE_BYTES} bytes (R10)"))
    elif not isinstance(value, (bool, int, float, type(None))) and len(write(value)) > MAX_ATTRIBUTE_VALUE_BYTES:
        left_out.append((name, f"value is over {MAX_ATTRIBUTE_VALUE_BYTES} bytes (R10)"))
        return
    attributes[name] = value


def unset_names(unset: Any) -> Iterator[str]:
    """R11: the names in a `$unset`, which is an array of names or an object whose keys are the names."""
    if isinstance(unset, (list, dict)):
        yield from (name for name in unset if isinstance(name, str))
