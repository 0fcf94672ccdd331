"""The checks of `customerio_delivery`: no refusal is open, yesterday is delivered, and no day was skipped."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.checks.common import how_to_run, list_days, or_warning
from cio_pipeline.defs.checks.yesterday import DUE, day_due
from cio_pipeline.defs.delivered_days import anything_delivered, is_delivered, last_delivery
from cio_pipeline.defs.partitions import days_before, first_to_last
from cio_pipeline.defs.store import Store
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask, mask_key, without_values
from cio_pipeline.state.refusals import OpenRefusals, Refusal

MAX_SHOWN = 50
"""The maximum number of refused items in the check's table."""

MAX_REASONS_SHOWN = 5

DAYS_LOOKED_BACK = 30


@dg.asset_check(
    asset=DELIVERY,
    description="Whether everything that Customer.io has ever refused was accepted later, or replaced by newer data.",
)
def nothing_refused(store: dg.ResourceParam[Store]) -> dg.AssetCheckResult:
    """Uses only the ledger, so it can be run on its own; `redeliver_refused` evaluates it again."""
    return or_warning(lambda: _nothing_refused(store))


def refusals_evaluated(store: Store) -> dg.AssetCheckEvaluation:
    """Returns the current result of `nothing_refused`, for a run of another job to report."""
    result = or_warning(lambda: _nothing_refused(store))
    return dg.AssetCheckEvaluation(
        asset_key=DELIVERY,
        check_name="nothing_refused",
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        blocking=False,
    )


def _nothing_refused(store: Store) -> dg.AssetCheckResult:
    open_refusals = store.ledger.open_refusals()
    total = sum(by_reason.number for by_reason in open_refusals)
    rows = [
        dg.TableRecord(mask_refusal(day, refusal))
        for day, refusals in store.ledger.refusals(limit=MAX_SHOWN).items()
        for refusal in refusals
    ]
    reasons = [
        dg.TableRecord(
            {
                "reason": mask(by_reason.reason),
                "refused": by_reason.number,
                "first day": by_reason.first,
                "last day": by_reason.last,
            }
        )
        for by_reason in open_refusals
    ]
    tables = {"refused, by reason": reasons, f"refused, the first {MAX_SHOWN}": rows} if open_refusals else {}
    return dg.AssetCheckResult(
        passed=not open_refusals,
        severity=dg.AssetCheckSeverity.WARN,
        description=_description(open_refusals, total) if open_refusals else None,
        metadata={
            "refused, open": total,
            "reasons": len(open_refusals),
            **{name: dg.MetadataValue.table(records) for name, records in tables.items()},
        },
    )


def _description(open_refusals: Sequence[OpenRefusals], total: int) -> str:
    """Returns the number of refused items by reason, and what to do, as text."""
    reasons = "; ".join(
        f"{by_reason.number:,} for '{mask(by_reason.reason)}' ({first_to_last(by_reason.first, by_reason.last)})"
        for by_reason in open_refusals[:MAX_REASONS_SHOWN]
    )
    more = (
        f"; {sum(by_reason.number for by_reason in open_refusals[MAX_REASONS_SHOWN:]):,} for other reasons"
        if len(open_refusals) > MAX_REASONS_SHOWN
        else ""
    )
    return (
        f"{total:,} {'item that Customer.io refused is' if total == 1 else 'items that Customer.io refused are'} still open:"
        f" {reasons}{more}. Fix the cause, in PostHog's data or in Customer.io's workspace; then send them again with the job"
        " redeliver_refused (`make redeliver`), all or by partition and reason."
    )


def mask_refusal(day: str, refusal: Refusal) -> dict[str, str]:
    """Returns a refused item, masked: its customer, what it is, the reason, and Customer.io's message without data."""
    operation = read_object(refusal.operation)
    event = "" if refusal.kind == "customer" else mask(str(operation.get("name", "")))
    api_words: dict[str, object] = {"type": {}, "action": {}, "name": {}}
    return {
        "day": day,
        "key": mask_key(refusal.key),
        "event": event or "(attributes)",
        "reason": mask(refusal.reason),
        "Customer.io's message": without_values(
            refusal.detail, {**operation, **api_words, "key": refusal.key.partition(":")[2]}
        ),
    }


@dg.asset_check(
    asset=DELIVERY,
    description="Whether the newest day that is due was delivered completely: by a run that began after the day was over, and"
    f" left nothing for another one (limit, hold_recent_events). A day is due at the first {DUE} (CIO_DELIVERED_BY) after"
    " its nightly run. The check is about the present, whatever the days of the run.",
)
def yesterday_delivered(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Uses only Dagster's materializations, so it can be run on its own; `customerio_checks_daily` does so each day."""
    return _yesterday_delivered(context.instance, datetime.now(UTC))


def _yesterday_delivered(instance: dg.DagsterInstance, now: datetime) -> dg.AssetCheckResult:
    day = day_due(now)
    delivery = last_delivery(instance, day) if day else None
    passed = day is None or (delivery is not None and delivery.is_whole) or not anything_delivered(instance)
    if delivery is None:
        what = "not delivered"
    elif delivery.left:
        what = (
            f"delivered only in part: its last run left {delivery.left:,} upserts and events for another one (limit,"
            " hold_recent_events)"
        )
    else:
        what = "delivered only in part, by a run that began before it was over"
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed or day is None
        else f"{day} is {what}. Look in Runs whether its run failed or is waiting, and whether the daemon and the schedule"
        f" customerio_daily are running; then {how_to_run([day])}.",
        metadata={"day": day or "", "days not delivered": int(not passed)},
    )


@dg.asset_check(
    asset=DELIVERY,
    description=f"Whether no day of the last {DAYS_LOOKED_BACK} was skipped, or delivered only in part, although days before"
    " and after it were delivered. After a long outage the schedule does not go back to all of its days.",
)
def no_day_missed(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Uses only Dagster's materializations, so it can be run on its own."""
    now = datetime.now(UTC)
    missed = missed_days(context.instance, now)
    return dg.AssetCheckResult(
        passed=not missed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Not delivered, or only in part: {list_days(missed)}. No schedule goes back to them: {how_to_run(missed)}."
        if missed
        else None,
        metadata={"days missed": len(missed)},
    )


def missed_days(instance: dg.DagsterInstance, now: datetime) -> list[str]:
    """Returns the days, of the last `DAYS_LOOKED_BACK` before `now`, that were skipped, or delivered only in part, although
    runs have delivered later days. Days before the first that a run has delivered were not skipped."""
    days = instance.get_materialized_partitions(DELIVERY)
    recent = days_before(str(now.date()))[-DAYS_LOOKED_BACK:] if days else []
    between = [day for day in recent if min(days) <= day < max(days)]
    return [day for day in between if day not in days or not is_delivered(instance, day)]
