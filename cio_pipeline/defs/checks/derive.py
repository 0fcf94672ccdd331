"""The checks of `customers`, `events`, `rejects` and `identities`: no event is lost, few are refused, earlier days are
learned."""

from collections.abc import Mapping

import dagster as dg

from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.checks.common import MAX_LISTED, WHICH_DAYS, days_of_run_or_recent, how_to_run, list_days, or_warning
from cio_pipeline.defs.pages.tables import percent
from cio_pipeline.defs.partitions import days_before
from cio_pipeline.defs.store import Store
from cio_pipeline.masking import mask, mask_key
from cio_pipeline.pipeline.accounting import DayCounts, discrepancies
from cio_pipeline.rules.classify import TO_SEND

CHECKS_OF_THE_RUN = [
    dg.AssetCheckSpec(
        "every_event_accounted_for",
        asset=asset_key("events"),
        blocking=True,
        description="Whether each extracted event of each day of the run is sent, filtered or refused, exactly once (R15)."
        " Otherwise the run delivers nothing.",
    ),
    dg.AssetCheckSpec(
        "few_refused_by_the_rules",
        asset=asset_key("rejects"),
        description="Whether the rules refuse no larger share of any day's events than CIO_REFUSED_SHARE allows.",
    ),
]


def every_event_accounted_for(counts_by_day: Mapping[str, DayCounts], store: Store) -> dg.AssetCheckResult:
    """Returns the result of the check of this name: extracted = sent + filtered + refused, according to the tables (R15)."""
    off = {day: wrong for day, day_counts in counts_by_day.items() if (wrong := discrepancies(day, day_counts, store.tables))}
    days = "; ".join(f"of {day}, {', '.join(wrong)}" for day, wrong in off.items())
    total = DayCounts()
    for day_counts in counts_by_day.values():
        total.add(day_counts)
    return dg.AssetCheckResult(
        asset_key=asset_key("events"),
        check_name="every_event_accounted_for",
        passed=not off,
        description=f"Not every event is accounted for: {days}. Materialize customers, events and rejects again for these days;"
        " if that does not help, open an issue with this message. This run does not deliver them."
        if off
        else None,
        metadata={
            "events extracted": total.outcomes.total(),
            "events to send": total.outcomes[TO_SEND],
            "events filtered": total.filtered,
            "events refused": total.refused,
            "days that are off": len(off),
        },
    )


def few_refused_by_the_rules(counts_by_day: Mapping[str, DayCounts], allowed: float) -> dg.AssetCheckResult:
    """Returns the result of the check of this name, for the days that were just derived. allowed: CIO_REFUSED_SHARE."""
    extracted = {day: day_counts.outcomes.total() for day, day_counts in counts_by_day.items()}
    refused = {day: day_counts.refused for day, day_counts in counts_by_day.items()}
    shares = {day: refused[day] / extracted[day] for day in counts_by_day if extracted[day]}
    beyond = [day for day, share in shares.items() if share > allowed]
    details = "; ".join(
        f"{percent(shares[day])} of {extracted[day]:,} events of {day} ({_why(counts_by_day[day])})"
        for day in beyond[:MAX_LISTED]
    )
    more = f", and of {len(beyond) - MAX_LISTED:,} days more" if len(beyond) > MAX_LISTED else ""
    return dg.AssetCheckResult(
        asset_key=asset_key("rejects"),
        check_name="few_refused_by_the_rules",
        passed=not beyond,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"The rules refused {details}{more}. CIO_REFUSED_SHARE allows {percent(allowed)}. The table rejects has"
        " each event with the rule: fix what sends such events to PostHog, or raise CIO_REFUSED_SHARE if they are intended."
        if beyond
        else None,
        metadata={
            "events extracted": sum(extracted.values()),
            "events refused": sum(refused.values()),
            "largest refused share of a day": max(shares.values(), default=0.0),
            "refused share allowed": float(allowed),
            "days beyond that": len(beyond),
        },
    )


def _why(day_counts: DayCounts) -> str:
    return ", ".join(f"{count:,} because {reason}" for reason, count in day_counts.refused_by_reason().most_common() if count)


@dg.asset_check(
    asset=asset_key("customers"),
    additional_deps=[asset_key("identities")],
    description="Whether all days before the last derived one were learned: what they say about people decides whose an event"
    " is (R1).",
)
def earlier_days_learned(store: dg.ResourceParam[Store]) -> dg.AssetCheckResult:
    """Uses only the database, so it can be run on its own, for example after the days that it lists were run."""
    return or_warning(lambda: _earlier_days_learned(store))


def _earlier_days_learned(store: Store) -> dg.AssetCheckResult:
    last = store.identities.last_derived()
    missing = store.identities.unlearned(days_before(last), store.learned_under) if last else []
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"What these days say about people is not known: {list_days(missing)}. If you need them,"
        f" {how_to_run(missing)}, then the days that the check later_days_up_to_date names. If you do not want"
        " them, set CIO_START_DATE later."
        if missing
        else None,
        metadata={
            "days missing": len(missing),
            "first": missing[0] if missing else "",
            "last": missing[-1] if missing else "",
        },
    )


@dg.asset_check(
    asset=asset_key("identities"),
    additional_deps=[asset_key(name) for name in ("customers", "events", "rejects")],
    description="Whether every day was derived with what all days before it say about people now.",
)
def later_days_up_to_date(store: dg.ResourceParam[Store]) -> dg.AssetCheckResult:
    """Uses only the database, so it can be run on its own."""
    return or_warning(lambda: _later_days_up_to_date(store))


def _later_days_up_to_date(store: Store) -> dg.AssetCheckResult:
    wrong = store.identities.out_of_date(store.options.stitch_anonymous_days)
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Earlier days have been learned since these were derived: {list_days(wrong)}. Materialize customers,"
        " events and rejects for them again, then customerio_delivery."
        if wrong
        else None,
        metadata={"days to derive again": len(wrong)},
    )


@dg.asset_check(
    asset=asset_key("identities"),
    description="Whether each email that was set on a day belongs to only one identified person, if customers' ids are"
    f" distinct_ids: Customer.io lets only one customer have an email. {WHICH_DAYS}",
)
def emails_not_shared(context: dg.AssetCheckExecutionContext, store: dg.ResourceParam[Store]) -> dg.AssetCheckResult:
    """Uses only the database, so it can be run on its own."""
    return or_warning(lambda: _emails_not_shared(store, days_of_run_or_recent(context.run)))


def _emails_not_shared(store: Store, days: list[str]) -> dg.AssetCheckResult:
    """With CIO_IDENTIFY_BY_EMAIL an email is one customer, however many ids have it, so nothing is wrong."""
    shared: dict[str, list[str]] = {}
    for day in days:
        shared.update(store.identities.shared_emails(day))
    by_email = store.options.identify_by_email
    ids = sum(map(len, shared.values()))
    most = sorted(shared.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_LISTED]
    rows = [
        dg.TableRecord({"email": mask(email), "ids": len(distinct_ids), "some of them": _mask_ids(distinct_ids)})
        for email, distinct_ids in most
    ]
    what = "1 email is" if len(shared) == 1 else f"{len(shared):,} emails are"
    return dg.AssetCheckResult(
        passed=by_email or not shared,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{what} shared by {ids:,} distinct_ids: see the table. Customer.io"
        " lets only one customer have an email; the others stay without one, and only its activity log says so."
        " Give each person one distinct_id where $identify is called, or set CIO_IDENTIFY_BY_EMAIL=Yes, so that an email is one"
        " customer."
        if shared and not by_email
        else None,
        metadata={
            "emails shared": len(shared),
            "ids that share one": ids,
            "most ids of one email": len(most[0][1]) if most else 0,
            **({"shared by most": dg.MetadataValue.table(rows)} if rows else {}),
        },
    )


def _mask_ids(distinct_ids: list[str], shown: int = 3) -> str:
    return ", ".join(
        [mask_key(f"id:{distinct_id}") for distinct_id in distinct_ids[:shown]] + ["…"] * (len(distinct_ids) > shown)
    )
