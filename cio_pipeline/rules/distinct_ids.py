"""R14: which distinct_ids belong to one person, and can be sent."""

from __future__ import annotations

from cio_pipeline.rules.limits import MAX_ID_BYTES


def _quoted_too(*names: str) -> frozenset[str]:
    return frozenset(quote + name + quote for quote in ("", "'", '"') for name in names)


PLACEHOLDERS_IN_ANY_CASE = _quoted_too(
    "anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined", "true", "false"
)
PLACEHOLDERS = _quoted_too("[object Object]", "NaN", "None", "none", "null", "0")
"""Ids that PostHog never merges (its person-merge code): faulty clients send them if they have no id."""


def is_placeholder(distinct_id: str) -> bool:
    """Returns whether this is sent by faulty clients instead of an id, so that many people share it."""
    return distinct_id in PLACEHOLDERS or distinct_id.lower() in PLACEHOLDERS_IN_ANY_CASE


def is_blank(distinct_id: str) -> bool:
    """Returns whether the id is empty or all spaces."""
    return not distinct_id or distinct_id.isspace()


def is_valid_distinct_id(distinct_id: str) -> bool:
    """Returns whether R14 accepts this id: it is neither blank, nor over 150 bytes, nor a placeholder."""
    return not is_blank(distinct_id) and len(distinct_id.encode()) <= MAX_ID_BYTES and not is_placeholder(distinct_id)
