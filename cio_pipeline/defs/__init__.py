"""Dagster's definitions. Each may import those below it:

- `alerts`: the sensor that sends alerts;
- `jobs`: the daily job, hourly runs, backfills, the dry run, `explain_person`, `redeliver_refused`, the scheduled checks;
- `assets`: extract, derive, deliver;
- `delivery`: one run's delivery, and its checks before the first request;
- `checks`: the asset checks;
- `delivered_days`: which days are delivered, according to Dagster;
- `pages`: the contents of the assets' pages;
- `reading`: reads PostHog into the store;
- `resources`, `services`, `connections`, `dagster_storage`, `json_logs`: the resources of a run, and its logs;
- `store`: the tables and the database of a run, with its settings;
- `dead_runs`: the sensor that ends runs whose process is gone;
- `failures`, `partitions`, `asset_keys`: how a run fails, its days, and the assets' keys.
"""

import warnings

import dagster as dg

# Backfill policies are beta, and Dagster would warn of that in each run. Its version is pinned, and the tests launch backfills.
warnings.filterwarnings("ignore", message=".*backfill_policy", category=dg.BetaWarning)
