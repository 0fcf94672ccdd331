"""What a command prints of its days when their runs have ended: what a dry run saw, and what did not go out and why.

It is made of the events that Dagster has recorded of the runs. The day's receipts are not part of it: the delivery logs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import dagster as dg
import orjson

from cio_pipeline.cli.terminal import complain, show
from cio_pipeline.rules.classify import REFUSED
from cio_pipeline.settings.settings import Settings
from cio_pipeline.tables.tables import Tables

RECORDED = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}
OF_ALL_DAYS = ("later_days_up_to_date", "nothing_refused")
"""Checks of all that there is: of several runs the last one counts."""

Facts = dict[str, Any]


class Summary:
    """What became of the days of one command, over all its runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said: set[str] = set()
        self._filtered: Counter[str] = Counter()
        self._extracted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._refused_by_customerio = 0
        self._failed_checks: dict[str, list[str]] = {}

    def see(self, event: dg.DagsterEvent) -> None:
        """Takes what is to be printed at the end from the event of a run; what a dry run saw of a day is printed at once."""
        if event.event_type not in RECORDED:
            return
        found: Any = event.event_specific_data
        if isinstance(found, dg.AssetCheckEvaluation):
            self._check(found)
            return
        asset = found.materialization if hasattr(found, "materialization") else found.asset_observation
        facts = {name: value.value for name, value in asset.metadata.items()}
        day, name = str(asset.partition), asset.asset_key.path[-1]
        if name == "events":
            self._derived(day, facts)
        elif name == "customerio_delivery" and facts and day not in self._said:
            self._said.add(day)
            self._add_receipt(day, facts)

    def end(self) -> int:
        """Says what did not go out and what to do about it; gives the exit status."""
        beyond = [day for day in self._extracted if self._refused[day] > self._settings.refused_share * self._extracted[day]]
        for line in (*self._unmatched(), *self.failed_checks()):
            show(line)
        if self._refused.total():
            (complain if beyond else show)(self._refusals(beyond))
        if self._refused_by_customerio:
            complain(
                f"Customer.io refused {self._refused_by_customerio:,} items: `python -m cio_pipeline refusals` lists them, and"
                " `redeliver` in its place sends them again."
            )
        return 1 if beyond or self._refused_by_customerio else 0

    def _derived(self, day: str, facts: Facts) -> None:
        self._extracted[day] = int(facts.get("extracted", 0))
        self._filtered[day] = int(facts.get("filtered", 0))
        self._refused[day] = int(facts.get("refused", 0))
        reasons = facts.get("reasons") or {}
        self._reasons.update({name: count for name, count in reasons.items() if name.startswith(REFUSED)})

    def _add_receipt(self, day: str, receipt: Facts) -> None:
        self._refused_by_customerio += int(receipt.get("refused", 0))
        if "dry run" not in receipt:
            return
        show(f"{day}, if it were run (nothing was sent):")
        rules = {"filtered": self._filtered[day], "refused by the rules": self._refused[day]}
        for name, value in {**receipt, **rules}.items():
            if name != "dry run":
                show(f"{name}: {_shown(value)}", indent="  ")

    def _check(self, check: dg.AssetCheckEvaluation) -> None:
        name = f"{check.check_name} of {check.asset_key.path[-1]}"
        if check.check_name in OF_ALL_DAYS:
            self._failed_checks.pop(name, None)
        if check.passed:
            return
        facts = {key: value.value for key, value in check.metadata.items()}
        what = check.description or ", ".join(f"{key}: {value}" for key, value in facts.items())
        if check.check_name == "earlier_days_learned":
            what = f"{what} ({facts.get('days missing')} days: make run FROM={facts.get('first')} TO={facts.get('last')})"
        self._failed_checks.setdefault(name, []).append(what)

    def failed_checks(self) -> Iterator[str]:
        """A line of each check that failed, with what to do."""
        for name, found in self._failed_checks.items():
            yield f"The check {name} failed: {' '.join(dict.fromkeys(found))}"

    def _refusals(self, beyond: list[str]) -> str:
        total, extracted = self._refused.total(), self._extracted.total()
        why = ", ".join(f"{count:,} because {name.removeprefix(REFUSED)}" for name, count in self._reasons.most_common())
        allowed = f"CIO_REFUSED_SHARE allows {_percent(self._settings.refused_share)} of a day"
        if beyond:
            most = ", ".join(f"{day} has {_percent(self._refused[day] / self._extracted[day])}" for day in beyond[:3])
            allowed += f", {most}" + (f", and {len(beyond) - 3} days more" if len(beyond) > 3 else "")
        return (
            f"The rules refused {total:,} of {extracted:,} events, {_percent(total / extracted)} ({allowed}): {why}."
            " The table `rejects` has each of them."
        )

    def _unmatched(self) -> Iterator[str]:
        """The names in lists that nothing of these days has: misspelled, perhaps, and so without effect."""
        tables = Tables(self._settings.data_dir)
        if names := set(self._settings.event_allowlist):
            for day in self._extracted:
                for shard in tables.read("posthog_events", day, columns=["event"]):
                    names -= set(shard["event"].unique())
            if names:
                yield f"CIO_EVENT_ALLOWLIST: no event of these days is named {_listed(names)}."
        if patterns := set(self._settings.exclude_attributes):
            for attribute in _attributes(tables, list(self._extracted)):
                patterns -= {pattern for pattern in patterns if fnmatchcase(attribute, pattern)}
                if not patterns:
                    return
            yield f"CIO_EXCLUDE_ATTRIBUTES: no attribute of these days is named {_listed(patterns)}."


def _attributes(tables: Tables, days: list[str]) -> Iterator[str]:
    """The names of attributes in the days' events, each once."""
    seen: set[str] = set()
    for day in days:
        for shard in tables.read("posthog_events", day, columns=["properties", "person_properties"]):
            for properties, person in zip(shard["properties"].tolist(), shard["person_properties"].tolist(), strict=True):
                new = (_names(properties, "$set") | _names(person)) - seen
                seen |= new
                yield from new


def _names(text: Any, inside: str = "") -> set[str]:
    if not isinstance(text, str) or inside not in text:
        return set()
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return set()
    if inside:
        found = found.get(inside) if isinstance(found, dict) else None
    return set(found) if isinstance(found, dict) else set()


def _shown(value: Any) -> str:
    """Counts by name with the most first, for Dagster has sorted the names; lists as JSON; and numbers."""
    if isinstance(value, dict):
        value = dict(sorted(value.items(), key=lambda item: -item[1]))
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else str(value)


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _percent(share: float) -> str:
    return f"{round(share * 100, 2):g} %"
