"""The job `customerio_sync` without the checks that are steps of their own: a quarter less of a run's time."""

from __future__ import annotations

from functools import cache

import dagster as dg

from cio_pipeline.definitions import defs
from cio_pipeline.defs.jobs.checks import CHECKS_WITHOUT_A_RUN
from cio_pipeline.defs.jobs.sync import customerio_sync


@cache
def without_checks() -> dg.JobDefinition:
    """For tests of the delivery, which look at no check: `defs/checks` has theirs."""
    job = dg.define_asset_job("without_checks", customerio_sync.selection - dg.AssetSelection.checks(*CHECKS_WITHOUT_A_RUN))
    return dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def(job.name)
