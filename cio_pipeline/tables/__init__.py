"""All Parquet: the tables between the steps of a day.

- `tables`: reads a partition, and replaces it as a whole; `pinned` is for runs that send what they have checked, `overlay` for
  those that store none;
- `versions`: a partition's versions, of which one is current;
- `columns`: reads only the columns that are used;
- `shuffle`: divides rows into shards;
- `parquet`: the layout of a file;
- `files`: the files themselves, and their errors.
"""
