"""People who asked to be forgotten: CIO_SUPPRESSED_FILE names them, and nothing of theirs is sent (R21)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from cio_pipeline.json_text import read_object
from cio_pipeline.rules.values import is_email

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Suppressed:
    """Who must not be sent.

    ids: distinct_ids; emails: in lower case; hashes: SHA-256 in lower-case hex, of the exact distinct_id or of the trimmed,
    lower-cased email; names: how many people the list names.
    """

    ids: frozenset[str] = NOTHING
    emails: frozenset[str] = NOTHING
    hashes: frozenset[str] = NOTHING
    names: int = 0

    def __bool__(self) -> bool:
        return bool(self.ids or self.emails or self.hashes)

    def has(self, text: Any) -> bool:
        """Whether this distinct_id or email is among them."""
        if not isinstance(text, str):
            return False
        email = text.strip().lower()
        if text in self.ids or text.strip() in self.ids or email in self.emails:
            return True
        return bool(self.hashes) and (_hash(text) in self.hashes or _hash(email) in self.hashes)

    def with_linked(self, linked: Callable[[Iterable[str]], set[str]], all_names: Iterable[str]) -> Suppressed:
        """These people, with each distinct_id and email of theirs (R21): `linked` gives all that are linked to some names.

        `all_names`, all that are known, are searched only where the list has hashes.
        """
        if not self:
            return self
        meant = {text for text in all_names if self.has(text)} if self.hashes else set()
        found = frozenset(linked(self.ids | self.emails | meant | {text.lower() for text in meant if "@" in text}))
        return replace(self, ids=found, emails=self.emails | {text.lower() for text in found if is_email(text)})

    def keys(self, keys: list[str], identifiers: list[Any], emails: list[Any], pairs: Iterable[tuple[str, str]]) -> set[str]:
        """The keys of a shard that are theirs: by the key itself, the `identifier` or `email` of its upserts (None where they
        have none), or a distinct_id behind its events, which `pairs` gives with their keys."""
        given = zip(keys, identifiers, emails, strict=True)
        named = {key for key, *texts in given if any(map(self.has, (key.partition(":")[2], *texts)))}
        return named | {key for key, distinct_id in pairs if self.has(distinct_id)}

    def has_customer(self, key: str, operation: str) -> bool:
        """Whether the customer of an operation is among them: by the key, and of an upsert by `identifier` or `email`."""
        given = read_object(operation)
        attributes = given["attributes"] if given.get("action") == "identify" else {}
        texts = (key.partition(":")[2], attributes.get("identifier"), attributes.get("email"))
        return any(map(self.has, texts))


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
