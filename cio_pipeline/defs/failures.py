"""A run fails with one sentence that says what is wrong and what to do, which Dagster's RUN_FAILURE shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import dagster as dg
from dagster._core.events import JobFailureData

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.errors import PipelineError
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.masking import mask
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.state.ledger import Ledger

MAX_RETRIES = "dagster/max_retries"
"""The tag that says how often Dagster may retry a failed run (`run_retries` in dagster.yaml)."""

TRANSIENT = (Unavailable, DatabaseError)
"""Errors after which a retry may succeed."""

GONE = (
    "The process of this run is gone: it was killed, perhaps for lack of memory, or its machine was restarted. What was"
    " delivered is kept; a rerun sends the rest."
)
"""The reason for a failure if the process of the run is gone."""

ENDED_BY_DAGSTER = "This run has been marked as failed from outside the execution context."
"""Dagster's message for a run whose process it has found to be gone."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


MAX_FAILURES = 3
"""If this many days fail in a row, the fault is not in the days, and the next ones are not tried."""


class DaysFailed(PipelineError):
    """Some of several days failed; the message names each of them, and why."""


class RunNotStarted(dg.DagsterError):
    """The run cannot start; the message is one sentence that says why.

    It is a subclass of Dagster's error, because Dagster wraps any other: "Error executing resource_fn on ResourceDefinition".
    """


@contextmanager
def readable_setup_failures(context: dg.InitResourceContext) -> Iterator[None]:
    """For the setup of a resource: a `PipelineError` in the block ends the run with its message, and Dagster retries the run
    only if that may help.

    A run that ends here has no failed step, so Dagster would retry it in any case, whatever `retry_on_asset_or_op_failure`
    says.
    """
    try:
        yield
    except PipelineError as error:
        if not isinstance(error, TRANSIENT) and context.run and context.instance:
            context.instance.add_run_tags(context.run.run_id, {MAX_RETRIES: "0"})
        raise RunNotStarted(str(error)) from None


def with_readable_failures(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates the function of an asset or op: a `PipelineError` becomes a `dagster.Failure` with the same message.

    Otherwise Dagster would show "Error occurred while executing op", and the message only below that.
    """
    if inspect.isgeneratorfunction(step):

        @wraps(step)
        def events(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Any]:
            with _as_failure():
                yield from cast("Iterator[Any]", step(*args, **kwargs))

        return cast("Callable[Arguments, Result]", events)

    @wraps(step)
    def result(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _as_failure():
            return step(*args, **kwargs)

    return result


@contextmanager
def _as_failure() -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def failures_of_days(days: Sequence[str], work: Callable[[str], None]) -> dict[str, PipelineError]:
    """Does the work of each day, even if other days fail. Returns the errors by day.

    Stops after `MAX_FAILURES` failures in a row; the days after that are not tried.
    """
    errors: dict[str, PipelineError] = {}
    for number, day in enumerate(days):
        try:
            work(day)
        except PipelineError as error:
            errors[day] = error
            if number + 1 >= MAX_FAILURES and all(
                earlier in errors for earlier in days[number + 1 - MAX_FAILURES : number + 1]
            ):
                break
    return errors


def reason_of(event: dg.DagsterEvent) -> str:
    """Returns why a run failed, from its RUN_FAILURE: our own message, or only the class of another error, which may quote
    data."""
    data = event.event_specific_data
    error = data.error if isinstance(data, JobFailureData) else None
    if error is None and event.message == ENDED_BY_DAGSTER:
        return GONE
    if error is None:
        return mask((event.message or "no reason given").partition('" failed. ')[2] or event.message or "")
    causes = [error]
    while (cause := causes[-1].cause) is not None:
        causes.append(cause)
    ours = {kind.__name__ for kind in (dg.Failure, RunNotStarted, *_kinds(PipelineError))}
    for cause in causes:
        if cause.cls_name in ours:
            return mask(cause.message.partition(": ")[2].strip())
    return f"{causes[-1].cls_name}. The run's log has the details."


def _kinds(kind: type[PipelineError]) -> Iterator[type[PipelineError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _kinds(subclass)


@contextmanager
def delivered_count_in_errors(ledger: Ledger, day: str, events: int) -> Iterator[None]:
    """Adds to the error of a delivery how many of the day's events are delivered, and that a rerun sends the rest."""
    try:
        yield
    except (Unavailable, NotDelivered) as error:
        kept = f"{len(ledger.delivered(day)):,} of {events:,} events of {day} are delivered and kept"
        raise type(error)(f"{error} {kept}: run the day again for the rest.") from None
