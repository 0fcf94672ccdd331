"""Why a run failed, in words that an alert may quote."""

from collections.abc import Iterator

import dagster as dg
from dagster._core.events import JobFailureData

from cio_pipeline.defs.dead_runs import GONE
from cio_pipeline.defs.failures import RunNotStarted
from cio_pipeline.errors import PipelineError
from cio_pipeline.masking import mask

ENDED_BY_DAGSTER = "This run has been marked as failed from outside the execution context."
"""Dagster's message for a run whose process it has found to be gone."""


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
