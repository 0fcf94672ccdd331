"""What happened to a person, and why, from Dagster's UI: nothing that Dagster keeps of it tells whom or what."""

import logging
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from cio_pipeline.customerio.sample import mask_id
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.suppression_list import read_suppressed
from cio_pipeline.defs.failures import failing_in_a_sentence
from cio_pipeline.defs.keys import GROUP, OWNERS, TAGS, key
from cio_pipeline.defs.outlook import days_text
from cio_pipeline.defs.pages import table
from cio_pipeline.defs.partitions import days_asked_for
from cio_pipeline.defs.resources import Store
from cio_pipeline.explanation import Explanation, explain, look_up, masked, person
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

MASK = re.compile(r"[^*@]{0,3}\*{3}[^*@]{0,3}|[^*@]\*{3}@[^*@.]\*{3}\.[\w-]+")
HASH = re.compile(r"[0-9a-fA-F]{64}")
MOST_PEOPLE = 10
ROWS_SHOWN = 300

explained_person = dg.AssetSpec(
    key("explained_person"),
    group_name=GROUP,
    owners=OWNERS,
    tags=TAGS,
    kinds={"customerio"},
    description="What happened to a person's events and attributes, and why: an observation each time that the job"
    " explain_person is launched (Jobs, explain_person, Launchpad). Ids and emails are masked, and values are left out.",
)


class Question(dg.Config):
    """Whom to explain, of which days."""

    person: str = Field(
        default="us***017",
        description="A distinct_id or email as this UI masks it, us***017 for user-000017 and j***@e***.com for"
        " jane@example.com, or its SHA-256. A launch with the plain one is refused, and tells these two.",
    )
    first: str = Field(
        default="30 days ago", alias="from", description="The first day, YYYY-MM-DD, yesterday or 30 days ago (UTC)."
    )
    last: str = Field(default="yesterday", alias="to", description="The last day, in the same way.")


class Hidden(NamedTuple):
    """How a distinct_id or email may stand in what Dagster keeps."""

    masked: str
    sha256: str


def hidden(who: str) -> Hidden:
    """A distinct_id or email, masked and hashed: an email in lower case."""
    return Hidden(mask_id(who), sha256((who.lower() if "@" in who else who).encode()).hexdigest())


@dg.config_mapping
def only_masked(config: Question) -> dg.RunConfig:
    """Refuses a person who is named plainly before Dagster has kept the run's config, which it does for ever.

    Raises `dagster.DagsterInvalidConfigError`.
    """
    who = re.sub(r"^(?:id|email)[: ]\s*", "", config.person.strip())
    if not (MASK.fullmatch(who) or HASH.fullmatch(who)):
        raise dg.DagsterInvalidConfigError(  # type: ignore[no-untyped-call]
            f"Nothing was run or kept. Dagster keeps a run's config for ever, so name the person masked: {hidden(who).masked}."
            f" Where several people look like that: {hidden(who).sha256}. The plain name can be given on the command line:"
            " python -m cio_pipeline explain.",
            [],
            None,
        )
    return dg.RunConfig(ops={"explain_to_log": Question(**{"person": who, "from": config.first, "to": config.last})})


@dg.op(out=dg.Out(dg.Nothing))
@failing_in_a_sentence
def explain_to_log(context: dg.OpExecutionContext, config: Question, store: Store) -> None:
    """Explains each person who is meant, masked, in an observation of the asset `explained_person`."""
    days = days_asked_for(config.first, config.last)
    people = list(_people(config.person, days, store.tables, store.identities))
    if not people:
        raise dg.Failure(
            f"Nobody who looks like {config.person} is known: neither to the identities nor by an event in the tables of"
            f" {days_text(days)}.",
            allow_retries=False,
        )
    listed = read_suppressed(store.suppressed_file)
    listed = listed.tied(store.identities.tied, store.identities.everybody()) if listed else listed
    for number, names in enumerate(people[:MOST_PEOPLE], 1):
        found = look_up(names, days, store.tables, store.identities, store.ledger, store.options, listed)
        made = masked(explain(names, found))
        which = f"{number} of {len(people):,} who look like {config.person}"
        others = "" if len(people) == 1 else "; the tab Events has the others"
        facts = {"person": which + others, "days": days_text(days), **_metadata(made)}
        context.log_event(dg.AssetObservation(explained_person.key, metadata=facts))
        logger.info("Person %s: %s events. The page of the asset explained_person has them.", which, f"{len(made.events):,}")
    if len(people) > MOST_PEOPLE:
        logger.warning("Only the first %s are explained: name the person by the SHA-256.", MOST_PEOPLE)


def _people(who: str, days: Sequence[str], tables: Tables, identities: Identities) -> Iterator[set[str]]:
    """The names of each person who is meant, once each."""
    seen = set[str]()
    hashes = Suppressed(hashes=frozenset([who.lower()]))
    for name in _everybody(days, tables, identities):
        if name not in seen and (hashes.has(name) if HASH.fullmatch(who) else mask_id(name) == who):
            names = person(name, identities)
            seen |= names
            yield names


def _everybody(days: Sequence[str], tables: Tables, identities: Identities) -> Iterator[str]:
    """All distinct_ids and emails of whom anything is known, perhaps several times."""
    yield from identities.everybody()
    for day in days:
        if tables.current("posthog_events", day) is not None:
            for shard in tables.read_arrow("posthog_events", day, ["distinct_id"]):
                yield from pc.unique(shard["distinct_id"]).to_pylist()


def _metadata(made: Explanation) -> dict[str, str | int | dg.MetadataValue]:
    rows = as_rows(made)
    return {
        "ids and emails": ", ".join(made.names),
        "events found": len(made.events),
        **{
            f"events {outcome}": sum(one.outcome == outcome for one in made.events)
            for outcome in ("sent", "held back", "refused")
        },
        "events": table([{name: row[name] for name in row if name != "uuid"} for row in rows["events"]], ROWS_SHOWN),
        "attributes": table(rows["attributes"], ROWS_SHOWN),
        "left out": table(rows["left out"], ROWS_SHOWN),
    }


def as_rows(made: Explanation) -> dict[str, list[dict[str, Any]]]:
    """The tables of an explanation, for the UI or the terminal."""
    parts: dict[str, Sequence[Any]] = {"events": made.events, "attributes": made.attributes, "left out": made.left_out}
    return {
        name: [{key.replace("_at", " at"): cell for key, cell in one._asdict().items()} for one in part]
        for name, part in parts.items()
    }


@dg.job(config=only_masked, tags={"explain": "true"}, executor_def=dg.in_process_executor)
def explain_person() -> None:
    """Tells what happened to a person's events and attributes, and why."""
    explain_to_log()
