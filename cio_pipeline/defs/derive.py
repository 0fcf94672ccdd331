"""What will be sent, exactly, and what will not and why."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Set

import dagster as dg

from cio_pipeline.accounting import discrepancies
from cio_pipeline.defs.checks import named, or_warning
from cio_pipeline.defs.extract import identities, posthog_events
from cio_pipeline.defs.failures import failing_in_a_sentence
from cio_pipeline.defs.keys import GROUP, key
from cio_pipeline.defs.partitions import a_few_days_a_run, days, days_before
from cio_pipeline.defs.resources import Store
from cio_pipeline.learning import learned_under
from cio_pipeline.pipeline import STITCHED, Account, derive_day
from cio_pipeline.rules.classify import FILTERED, REFUSED, SENT

UPSTREAM = (identities,)
"""The day's `posthog_events` come before its `identities`. They are no parent of their own: of a multi-asset with two parents
Dagster 1.13 refuses every backfill, or none, by the order in which its webserver happens to walk the graph.

R1 takes the identities of all earlier days. A partition mapping that said so would make Dagster's backfill of a day one of
all later days too; instead a backfill's runs go in the order of their days (dagster.yaml), and checks name what is missing.
"""

logger = logging.getLogger(__name__)

DESCRIPTIONS = {
    "customers": "One row per customer to upsert, and the operation as it will be sent.",
    "events": "One row per event to send, and the operation as it will be sent.",
    "rejects": "One row per refused event, attribute or property, and why.",
}


@dg.multi_asset(
    specs=[dg.AssetSpec(key(name), deps=UPSTREAM, description=text) for name, text in DESCRIPTIONS.items()],
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    group_name=GROUP,
    check_specs=[
        dg.AssetCheckSpec("every_event_accounted_for", asset=key("events"), blocking=True),
        dg.AssetCheckSpec("earlier_days_learned", asset=key("customers")),
    ],
)
@failing_in_a_sentence
def customers_events_rejects(
    context: dg.AssetExecutionContext, store: Store
) -> Iterator["dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """Applies the connector's rules to the day's `posthog_events`, by what the `identities` so far say."""
    _refuse_to_go_before_the_extraction(context.job_def.asset_layer.selected_asset_keys)
    accounts: dict[str, Account] = {}
    for day in context.partition_keys:
        accounts[day] = derive_day(day, store.tables, store.identities, store.options, workers=store.workers)
        _tell(context, store, day, accounts[day])
    yield from (dg.MaterializeResult(asset_key=key(name)) for name in DESCRIPTIONS)
    yield _every_event_accounted_for(accounts, store)
    found = or_warning(lambda: _earlier_days_learned(store, context.partition_keys))
    yield found._replace(asset_key=key("customers"), check_name="earlier_days_learned")


@dg.asset_check(asset=identities, additional_deps=[key(name) for name in DESCRIPTIONS])
def later_days_up_to_date(store: Store) -> dg.AssetCheckResult:
    """Whether every day was derived after all days before it were learned; those to derive again are named."""
    return or_warning(lambda: _later_days_up_to_date(store))


def _refuse_to_go_before_the_extraction(selected: Set[dg.AssetKey]) -> None:
    """Dagster puts `posthog_events` before the tables of the same run only by the `identities` between them."""
    if posthog_events.key in selected and identities.key not in selected:
        raise dg.Failure(
            "To extract and derive in one run, select identities, too: it comes between them.", allow_retries=False
        )


def _tell(context: dg.AssetExecutionContext, store: Store, day: str, account: Account) -> None:
    counts = {SENT: account.outcomes[SENT], STITCHED: account.stitched}
    others = {name: count for name, count in account.outcomes.items() if name != SENT}
    facts: dict[str, dict[str, dg.MetadataValue | int]] = {
        "customers": {"notes": _table(account.notes)} if account.notes else {},
        "events": {
            "extracted": account.outcomes.total(),
            "filtered": sum(count for name, count in others.items() if name.startswith(FILTERED)),
            "refused": sum(count for name, count in others.items() if name.startswith(REFUSED)),
            "reasons": dg.MetadataValue.json({name: count for name, count in others.items() if count}),
            "outcomes": _table({**counts, **others}),
        },
        "rejects": {"left out of what was sent": _table(account.left_out)},
    }
    events = facts["events"]
    logger.info(
        "%s: %s events, %s filtered, %s refused by the rules.",
        day,
        *(f"{events[name]:,}" for name in ("extracted", "filtered", "refused")),
    )
    for name, metadata in facts.items():
        rows = store.tables.version(name, day).rows
        context.add_asset_metadata({"dagster/row_count": rows, **metadata}, asset_key=key(name), partition_key=day)


def _table(counts: Mapping[str, int]) -> dg.MetadataValue:
    lines = [f"| {reason} | {count:,} |" for reason, count in sorted(counts.items(), key=lambda item: -item[1]) if count]
    return dg.MetadataValue.md("\n".join(["| outcome | count |", "| --- | ---: |", *lines]))


def _every_event_accounted_for(accounts: dict[str, Account], store: Store) -> dg.AssetCheckResult:
    """R15: extracted = sent + filtered + refused, by what stands in the tables."""
    off = {day: wrong for day, account in accounts.items() if (wrong := discrepancies(day, account, store.tables))}
    days = "; ".join(f"of {day}, {', '.join(wrong)}" for day, wrong in off.items())
    return dg.AssetCheckResult(
        asset_key=key("events"),
        check_name="every_event_accounted_for",
        passed=not off,
        description=f"Not every event is accounted for: {days}. Materialize customers, events and rejects again for these days;"
        " if that does not help, report it. Until then they are not delivered."
        if off
        else None,
        metadata={"days that are off": list(off)},
    )


def _earlier_days_learned(store: Store, keys: Sequence[str]) -> dg.AssetCheckResult:
    """R1 needs the facts of all earlier days: those that were never extracted are named."""
    missing = store.identities.unlearned(days_before(max(keys)), learned_under(store.attributes_from))
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"What these days teach about people is not known: {named(missing)}. Materialize posthog_events and"
        f" identities for them, then customers, events and rejects for {named(keys)} again."
        if missing
        else None,
        metadata={"days missing": len(missing), "first": missing[0] if missing else "", "last": missing[-1] if missing else ""},
    )


def _later_days_up_to_date(store: Store) -> dg.AssetCheckResult:
    wrong = store.identities.out_of_date(store.options.stitch_anonymous_days)
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Earlier days were learned since these were derived: {named(wrong)}. Materialize customers, events and"
        " rejects for them again, then customerio_delivery."
        if wrong
        else None,
        metadata={"days": len(wrong)},
    )
