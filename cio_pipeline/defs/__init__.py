"""What Dagster sees. Imports go up this list only:

- `keys`, `partitions`, `failures`, `connections`, `services`, `resources`: names, days, how a run fails, and what it is given;
- `pages`: what the assets' pages show;
- `checks`: the asset checks;
- `assets`: extract, derive, deliver;
- `jobs`: the daily job, the dry run, `explain_person`, `redeliver_refused`, the scheduled checks;
- `alerts`: the sensor that sends alerts.
"""

import warnings

import dagster as dg

# Dagster calls backfill policies beta, and would say so in each run. Its version is pinned, and the tests launch backfills.
warnings.filterwarnings("ignore", message=".*backfill_policy", category=dg.BetaWarning)
