"""Identities for dry runs and hourly runs, which store none: their days are learned into a separate database, on top of the
stored identities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from cio_pipeline.state.identities import Identities


class OverlayIdentities(Identities):
    """Identities in a separate database, on top of a base that does not change.

    Days from `first` on are read only from here, earlier days from the base, and the history from both.
    """

    def __init__(self, url: str, base: Identities, first: str) -> None:
        super().__init__(url)
        self._base, self._first = base, first

    def close(self) -> None:
        """Closes the database, so that its file may be deleted."""
        self._engine.dispose()

    def known_before(self, day: str, distinct_ids: list[str]) -> pd.DataFrame:
        """As `Identities.known_before`. An event belongs to the day of its time, so the last email has the latest time."""
        parts = [self._base.known_before(min(day, self._first), distinct_ids), super().known_before(day, distinct_ids)]
        rows = pd.concat(parts, ignore_index=True).sort_values("email_set_at", na_position="first", kind="stable")
        people = rows.groupby("distinct_id", sort=False)
        known = people[["email", "email_set_at"]].last().astype(object)
        known = known.where(known.notna(), None)
        return known.assign(identified=people["identified"].any()).reset_index()[parts[0].columns.tolist()]

    def linked(self, names: Iterable[str]) -> set[str]:
        """As `Identities.linked`, with the links of both."""
        linked, previous = set(names), set[str]()
        while linked != previous:
            previous, linked = linked, super().linked(self._base.linked(linked))
        return linked

    def all_names(self) -> Iterator[str]:
        """As `Identities.all_names`, of both."""
        yield from self._base.all_names()
        yield from super().all_names()

    def merges_between(self, first: str, day: str, anonymous_ids: list[str]) -> pd.DataFrame:
        """As `Identities.merges_between`."""
        of_base = self._base.merges_between(first, min(day, self._first), anonymous_ids)
        return pd.concat([of_base, super().merges_between(first, day, anonymous_ids)], ignore_index=True)

    def unlearned(self, days: list[str], setting: str | None = None) -> list[str]:
        """As `Identities.unlearned`: the days that are learned in neither."""
        return super().unlearned(self._base.unlearned(days, setting), setting)

    def _each_learned_day(self) -> pd.DataFrame:
        """As `Identities._each_learned_day`, of both. So a day has the fingerprint that a run would give it, and is derived
        again if a run would derive it again."""
        of_base = self._base._each_learned_day()
        both = pd.concat([super()._each_learned_day(), of_base[of_base["day"] < self._first]], ignore_index=True)
        return both.drop_duplicates("day").sort_values("day", ignore_index=True)
