"""The job `explain_person`: what happened to a person's events and attributes, and why. Dagster stores only masked data."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.suppression_list import read_suppressed
from cio_pipeline.defs.asset_keys import GROUP, OWNERS, TAGS, asset_key
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.pages.schemas import EXPLAINED_COLUMNS, table_schema
from cio_pipeline.defs.pages.tables import table
from cio_pipeline.defs.partitions import days_asked_for, days_text
from cio_pipeline.defs.store import Store
from cio_pipeline.explanation import OUTCOMES, Explanation, explain, mask_explanation
from cio_pipeline.masking import mask_id
from cio_pipeline.person_records import look_up, person_names
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

MASK = re.compile(r"[^*@]{0,3}\*{3}[^*@]{0,3}|[^*@]\*{3}@[^*@.]\*{3}\.[\w-]+")
HASH = re.compile(r"[0-9a-fA-F]{64}")
MAX_PEOPLE = 10
ROWS_SHOWN = 300

explained_person = dg.AssetSpec(
    asset_key("explained_person"),
    group_name=GROUP,
    owners=OWNERS,
    tags=TAGS,
    kinds={"customerio"},
    description="What happened to a person's events and attributes, and why: an observation each time that the job"
    " explain_person is launched (Jobs, explain_person, Launchpad). Ids and emails are masked, and values are left out.",
    metadata={"dagster/column_schema": table_schema(EXPLAINED_COLUMNS)},
)


class ExplainConfig(dg.Config):
    """The person, and the days."""

    person: str = Field(
        default="us***017",
        description="A distinct_id or email as this UI masks it (us***017 for user-000017, j***@e***.com for jane@example.com),"
        " or its SHA-256. A launch with the plain one is refused, with a message that names both.",
    )
    first: str = Field(
        default="30 days ago", alias="from", description="The first day, YYYY-MM-DD, yesterday or 30 days ago (UTC)."
    )
    last: str = Field(default="yesterday", alias="to", description="The last day, in the same form.")


class MaskedName(NamedTuple):
    """A distinct_id or email as Dagster may store it."""

    masked: str
    sha256: str


def masked_name(who: str) -> MaskedName:
    """Returns a distinct_id or email masked and hashed, an email in lower case."""
    return MaskedName(mask_id(who), sha256((who.lower() if "@" in who else who).encode()).hexdigest())


@dg.config_mapping
def refuse_plain_name(config: ExplainConfig) -> dg.RunConfig:
    """Rejects a plain distinct_id or email before Dagster stores the run's config, which it does forever.

    Raises `dagster.DagsterInvalidConfigError`.
    """
    who = re.sub(r"^(?:id|email)[: ]\s*", "", config.person.strip())
    if not (MASK.fullmatch(who) or HASH.fullmatch(who)):
        masked, sha256_of_it = masked_name(who)
        raise dg.DagsterInvalidConfigError(  # type: ignore[no-untyped-call]
            f"Nothing was run or stored. Dagster stores a run's config forever, so name the person masked: {masked}. If several"
            f" people look like that: {sha256_of_it}. The command line takes the plain name: python -m cio_pipeline explain.",
            [],
            None,
        )
    return dg.RunConfig(ops={"explain_to_log": ExplainConfig(**{"person": who, "from": config.first, "to": config.last})})


@dg.op(out=dg.Out(dg.Nothing))
@with_readable_failures
def explain_to_log(context: dg.OpExecutionContext, config: ExplainConfig, store: dg.ResourceParam[Store]) -> None:
    """Explains each matching person, masked, in an observation of the asset `explained_person`."""
    days = days_asked_for(config.first, config.last)
    people = list(_people(config.person, days, store.tables, store.identities))
    if not people:
        raise dg.Failure(
            f"Nobody matches {config.person}, neither in the identities nor in the events of {days_text(days)}. Name more"
            " days (from), or check the id or email with `make explain`.",
            allow_retries=False,
        )
    listed = read_suppressed(store.settings.suppressed_file).with_linked(store.identities.linked, store.identities.all_names())
    for number, names in enumerate(people[:MAX_PEOPLE], 1):
        records = look_up(names, days, store.tables, store.identities, store.ledger, store.options, listed)
        explanation = mask_explanation(explain(names, records))
        which = f"{number} of {len(people):,} who look like {config.person}"
        others = "" if len(people) == 1 else "; the tab Events has the others"
        metadata = {"person": which + others, "days": days_text(days), **_metadata(explanation)}
        context.log_event(dg.AssetObservation(explained_person.key, metadata=metadata))
        logger.info(
            "Person %s: %s events. The page of the asset explained_person has them.", which, f"{len(explanation.events):,}"
        )
    if len(people) > MAX_PEOPLE:
        logger.warning("Only the first %s are explained: name the person by their SHA-256 instead.", MAX_PEOPLE)


def _people(who: str, days: Sequence[str], tables: Tables, identities: Identities) -> Iterator[set[str]]:
    """Yields the distinct_ids and emails of each person who matches `who`, which is masked or hashed."""
    seen = set[str]()
    hashes = Suppressed(hashes=frozenset([who.lower()]))
    for name in _all_names(days, tables, identities):
        if name not in seen and (hashes.has(name) if HASH.fullmatch(who) else mask_id(name) == who):
            names = person_names(name, identities)
            seen |= names
            yield names


def _all_names(days: Sequence[str], tables: Tables, identities: Identities) -> Iterator[str]:
    """Yields all known distinct_ids and emails, some of them several times."""
    yield from identities.all_names()
    for day in days:
        if tables.find_version("posthog_events", day) is not None:
            for shard in tables.read_arrow("posthog_events", day, ["distinct_id"]):
                yield from pc.unique(shard["distinct_id"]).to_pylist()


def _metadata(explanation: Explanation) -> dict[str, str | int | dg.MetadataValue]:
    rows, outcomes = as_rows(explanation), Counter(one.outcome for one in explanation.events)
    return {
        "ids and emails": ", ".join(explanation.names),
        "events found": len(explanation.events),
        **{f"events {outcome}": outcomes[outcome] for outcome in OUTCOMES},
        "events": table([{name: row[name] for name in row if name != "uuid"} for row in rows["events"]], ROWS_SHOWN),
        "attributes": table(rows["attributes"], ROWS_SHOWN),
        "left out": table(rows["left out"], ROWS_SHOWN),
    }


def as_rows(explanation: Explanation) -> dict[str, list[dict[str, Any]]]:
    """Returns the tables of an explanation, for the UI or the terminal."""
    parts: dict[str, Sequence[Any]] = {
        "events": explanation.events,
        "attributes": explanation.attributes,
        "left out": explanation.left_out,
    }
    return {
        name: [{key.replace("_at", " at"): cell for key, cell in one._asdict().items()} for one in part]
        for name, part in parts.items()
    }


@dg.job(config=refuse_plain_name, tags={"explain": "true"}, executor_def=dg.in_process_executor)
def explain_person() -> None:
    """Reports what happened to a person's events and attributes, and why."""
    explain_to_log()
