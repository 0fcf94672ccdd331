"""All Parquet: the tables between the steps of a day.

- `tables`: reads a partition, and replaces it as a whole; `overlay` is for runs that store none;
- `versions`: a partition's versions, of which one is current;
- `columns`: reads only the columns that are used;
- `shuffle`: divides rows into shards;
- `parquet`: the layout of a file;
- `files`: the files themselves, and their errors.
"""
