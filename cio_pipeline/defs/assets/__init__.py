"""The assets, in the order of a day: extract, derive, deliver; and the two services at the ends of the lineage."""
