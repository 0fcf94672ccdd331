"""What Dagster sees: assets, checks, jobs, the schedule and the resources."""

import warnings

import dagster as dg

# Dagster calls backfill policies beta, and would say so in each run. Its version is pinned, and the tests launch backfills.
warnings.filterwarnings("ignore", message=".*backfill_policy", category=dg.BetaWarning)
