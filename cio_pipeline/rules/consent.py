"""R19: attributes that say what a person wants to receive. By default only those pass that reduce what they receive."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

UNSUBSCRIBED, PREFERENCES = "unsubscribed", "cio_subscription_preferences"
TOPIC = f"{PREFERENCES}.topics."
REASON = "is about consent (R19)"


AllowConsent = Literal["No", "unsubscribe", "Yes"]


@lru_cache(maxsize=10_000)
def is_consent(name: str) -> bool:
    """Returns whether an attribute of this name says what a person wants to receive."""
    meant = name.strip().lower()
    return meant in (UNSUBSCRIBED, PREFERENCES) or meant.startswith(f"{PREFERENCES}.")


def without_disallowed_consent(given: dict[str, Any], allow: AllowConsent) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Returns the attributes without those about consent that may not pass, and (name, reason) of each that was left out.

    `given` are values by name, None for an attribute that is cleared.
    """
    if allow == "Yes" or not any(map(is_consent, given)):
        return given, []
    passed: dict[str, Any] = {}
    left_out: list[tuple[str, str]] = []
    for name, value in given.items():
        if not is_consent(name):
            passed[name] = value
            continue
        less, is_all = _reducing_part(name, name.strip().lower(), value) if allow == "unsubscribe" else ({}, False)
        passed |= less
        if not is_all:
            left_out.append((name, REASON))
    return passed, left_out


def _reducing_part(name: str, meant: str, value: Any) -> tuple[dict[str, Any], bool]:
    """Returns the part of this attribute that reduces what the person receives, as it is to be sent, and whether that is all of
    it."""
    if meant == PREFERENCES:
        topics = value.get("topics") if isinstance(value, dict) else None
        off = [topic for topic, wanted in topics.items() if topic and wanted is False] if isinstance(topics, dict) else []
        return {TOPIC + topic: False for topic in off}, bool(off) and len(off) == len(topics or ()) and len(value) == 1
    less = _is_yes(value) if meant == UNSUBSCRIBED else value is False and meant.startswith(TOPIC) and meant != TOPIC
    return ({name: value}, True) if less else ({}, False)


def _is_yes(value: Any) -> bool:
    return value.lower() in ("true", "1") if isinstance(value, str) else isinstance(value, (bool, int, float)) and value == 1
