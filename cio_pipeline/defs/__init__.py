"""What Dagster sees. Imports go down this list only:

- `alerts`: the sensor that sends alerts;
- `jobs`: the daily job, hourly runs, backfills, the dry run, `explain_person`, `redeliver_refused`, the scheduled checks;
- `assets`: extract, derive, deliver;
- `delivery`: how a run delivers, and what it checks first;
- `checks`: the asset checks;
- `pages`: what the assets' pages show;
- `resources`, `services`, `connections`, `dagster_storage`, `json_logs`: what a run is given;
- `dead_runs`: the sensor that ends runs whose process is gone;
- `failures`, `partitions`, `keys`: how a run fails, its days, and names.
"""

import warnings

import dagster as dg

# Dagster calls backfill policies beta, and would say so in each run. Its version is pinned, and the tests launch backfills.
warnings.filterwarnings("ignore", message=".*backfill_policy", category=dg.BetaWarning)
