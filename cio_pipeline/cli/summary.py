"""Prints at the end of a command what was not delivered, and why.

It uses the events that Dagster has recorded. The receipts are not part of it, as the delivery logs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg

from cio_pipeline.cli.terminal import complain, show
from cio_pipeline.defs.pages.receipts import OPEN_REFUSALS
from cio_pipeline.defs.pages.tables import percent
from cio_pipeline.rules.classify import REFUSED
from cio_pipeline.settings.settings import Settings
from cio_pipeline.tables.tables import Tables
from cio_pipeline.unmatched import unmatched

RECORDED = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION}
OF_ALL_DAYS = ("earlier_days_learned", "later_days_up_to_date", "nothing_refused")
"""Checks of all days: if there are several runs, the result of the last one counts."""

LEFT_OUT = ("few_refused_by_the_rules", "yesterday_delivered", "no_day_missed")
"""Checks that are not printed: `end` has a line for the first, over all days; the others are not about the command's days."""

Metadata = dict[str, Any]


class Summary:
    """The results of one command's days, over all its runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._days_seen: set[str] = set()
        self._extracted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        """By day, as a run that fails derives its days again."""
        self._refused_by_customerio = 0
        self._failed_checks: dict[str, list[str]] = {}

    def see(self, event: dg.DagsterEvent) -> None:
        """Collects from a run's event what is printed at the end."""
        if event.event_type not in RECORDED:
            return
        data: Any = event.event_specific_data
        if isinstance(data, dg.AssetCheckEvaluation):
            self._check(data)
            return
        asset = data.materialization
        metadata = {name: value.value for name, value in asset.metadata.items()}
        day, name = str(asset.partition), asset.asset_key.path[-1]
        if name == "events":
            self._derived(day, metadata)
        elif name == "customerio_delivery" and metadata and day not in self._days_seen:
            self._days_seen.add(day)
            self._refused_by_customerio += int(metadata.get(OPEN_REFUSALS, 0))

    def end(self) -> int:
        """Prints what was not delivered and what to do about it. Returns the exit status."""
        beyond = [day for day in self._extracted if self._refused[day] > self._settings.refused_share * self._extracted[day]]
        settings = self._settings
        tables, days = Tables(settings.data_dir), list(self._extracted)
        for line in (
            *unmatched(tables, days, settings.event_allowlist, settings.exclude_attributes),
            *self.failed_checks(),
        ):
            show(line)
        if self._refused.total():
            (complain if beyond else show)(self._refusals(beyond))
        if self._refused_by_customerio:
            complain(
                f"Customer.io refused {self._refused_by_customerio:,} items: `python -m cio_pipeline refusals` lists them, and"
                " `python -m cio_pipeline redeliver` sends them again."
            )
        return 1 if beyond or self._refused_by_customerio else 0

    def _derived(self, day: str, metadata: Metadata) -> None:
        self._extracted[day] = int(metadata.get("extracted", 0))
        self._refused[day] = int(metadata.get("refused", 0))
        outcomes = [record.data for record in metadata["outcomes"].records] if "outcomes" in metadata else []
        self._reasons[day] = Counter(
            {str(one["what"]): int(one["count"]) for one in outcomes if str(one.get("what")).startswith(REFUSED)}
        )

    def _check(self, check: dg.AssetCheckEvaluation) -> None:
        name = f"{check.check_name} of {check.asset_key.path[-1]}"
        if check.check_name in OF_ALL_DAYS:
            self._failed_checks.pop(name, None)
        if check.passed or check.check_name in LEFT_OUT:
            return
        metadata = {key: value.value for key, value in check.metadata.items()}
        what = check.description or ", ".join(f"{key}: {value}" for key, value in metadata.items())
        self._failed_checks.setdefault(name, []).append(what)

    def failed_checks(self) -> Iterator[str]:
        """Yields a line for each failed check, with what to do."""
        for name, reasons in self._failed_checks.items():
            yield f"The check {name} failed: {' '.join(dict.fromkeys(reasons))}"

    def _refusals(self, beyond: list[str]) -> str:
        total, extracted = self._refused.total(), self._extracted.total()
        reasons = sum(self._reasons.values(), Counter[str]())
        why = ", ".join(f"{count:,} because {name.removeprefix(REFUSED)}" for name, count in reasons.most_common())
        allowed = f"CIO_REFUSED_SHARE allows {percent(self._settings.refused_share)} of a day"
        if beyond:
            most = ", ".join(f"{day} has {percent(self._refused[day] / self._extracted[day])}" for day in beyond[:3])
            allowed += f", {most}" + (f", and {len(beyond) - 3} days more" if len(beyond) > 3 else "")
        return (
            f"The rules refused {total:,} of {extracted:,} events, {percent(total / extracted)} ({allowed}): {why}."
            " The table `rejects` has each of them."
        )
