"""The keys of the assets: all begin with `cio`, so that they do not clash with a team's own `events` and `customers`."""

import dagster as dg

GROUP = "customerio_sync"
"""The group of all assets: with a single group, Dagster shows the graph expanded instead of as closed boxes."""

OWNERS = ["team:data"]
TAGS = {"pipeline": "cio_pipeline"}
"""The owners and tags of each asset. They are not settings: change them here."""

PREFIX = "cio"


def asset_key(name: str) -> dg.AssetKey:
    """Returns the key of the asset with this name."""
    return dg.AssetKey([PREFIX, name])


DELIVERY = asset_key("customerio_delivery")
