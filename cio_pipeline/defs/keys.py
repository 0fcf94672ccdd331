"""The assets' keys: all begin with `cio`, so that they are none of a team's own `events` and `customers`."""

import dagster as dg

GROUP = "customerio_sync"

OWNERS = ["team:data"]
TAGS = {"pipeline": "cio_pipeline"}
"""Of each asset. To change them, change them here: they are no settings."""

REPORTS = "customerio_reports"
"""The group of what jobs tell that send nothing and write no table: it stands apart in the graph."""

PREFIX = "cio"


def key(name: str) -> dg.AssetKey:
    """The key of the asset of this name."""
    return dg.AssetKey([PREFIX, name])
