"""A run fails with one sentence that says what is wrong and what to do, which Dagster's RUN_FAILURE shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import dagster as dg

from cio_pipeline.errors import PipelineError
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.state.database import DatabaseError

MAX_RETRIES = "dagster/max_retries"
"""The tag that says how often Dagster may retry a failed run (`run_retries` in dagster.yaml)."""

TRANSIENT = (Unavailable, DatabaseError)
"""Errors after which a retry may succeed."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


MAX_FAILURES = 3
"""If this many days fail in a row, the fault is not in the days, and the next ones are not tried."""


def failed_in_a_row(days: Sequence[str], failed: Collection[str], last: str) -> bool:
    """Returns whether the last `MAX_FAILURES` of the days up to `last` have all failed."""
    tried = days[: days.index(last) + 1]
    return len(tried) >= MAX_FAILURES and set(tried[-MAX_FAILURES:]) <= set(failed)


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
