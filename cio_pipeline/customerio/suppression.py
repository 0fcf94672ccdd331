"""R21: people who asked to be forgotten, whom CIO_SUPPRESSED_FILE names. Nothing about them is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from cio_pipeline.json_text import read_object
from cio_pipeline.rules.values import is_email

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, repr=False)
class Suppressed:
    """Who must not be sent. There is no `repr`, as it would contain emails.

    ids: distinct_ids; emails: in lower case; hashes: SHA-256 in lower-case hex, of the exact distinct_id or of the trimmed,
    lower-cased email; people_listed: how many people the list names.
    """

    ids: frozenset[str] = NOTHING
    emails: frozenset[str] = NOTHING
    hashes: frozenset[str] = NOTHING
    people_listed: int = 0

    def __bool__(self) -> bool:
        return bool(self.ids or self.emails or self.hashes)

    def has(self, text: str | None) -> bool:
        """Returns whether this distinct_id or email is suppressed."""
        if not isinstance(text, str):
            return False
        email = text.strip().lower()
        if text in self.ids or text.strip() in self.ids or email in self.emails:
            return True
        return bool(self.hashes) and (_hash(text) in self.hashes or _hash(email) in self.hashes)

    def with_linked(self, linked: Callable[[Iterable[str]], set[str]], all_names: Iterable[str]) -> Suppressed:
        """Returns these people, with all of their distinct_ids and emails (R21), which `linked` returns for some of their
        names.

        `all_names` are all known distinct_ids and emails. They are searched only if the list has hashes.
        """
        if not self:
            return self
        hashed = {text for text in all_names if self.has(text)} if self.hashes else set()
        ids = frozenset(linked(self.ids | self.emails | hashed | {text.lower() for text in hashed if "@" in text}))
        return replace(self, ids=ids, emails=self.emails | {text.lower() for text in ids if is_email(text)})

    def keys(
        self,
        keys: Sequence[str],
        identifiers: Sequence[str | None],
        emails: Sequence[str | None],
        pairs: Iterable[tuple[str, str]],
    ) -> set[str]:
        """Returns the suppressed keys of a shard: by the key itself, by the `identifier` or `email` of its customer (which may
        be None), or by a distinct_id of its events, given as `pairs` of key and distinct_id."""
        customers = zip(keys, identifiers, emails, strict=True)
        suppressed = {key for key, *texts in customers if any(map(self.has, (key.partition(":")[2], *texts)))}
        return suppressed | {key for key, distinct_id in pairs if self.has(distinct_id)}

    def has_customer(self, key: str, operation: str) -> bool:
        """Returns whether the customer of an operation is suppressed: by the key, or by the `identifier` or `email` of an
        upsert."""
        parsed = read_object(operation)
        attributes = parsed["attributes"] if parsed.get("action") == "identify" else {}
        texts = (key.partition(":")[2], attributes.get("identifier"), attributes.get("email"))
        return any(map(self.has, texts))


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
