"""A day's steps, shard by shard, without Dagster. In their order:

- `extract`: writes the day's events, a shard by `extract_shard`; `events` reads them again;
- `learn`: what the events say about people;
- `derive`: what will be sent of them, and what not; `classification` applies the rules to a shard, `by_customer` makes shards
  of customers where several distinct_ids may be one; `accounting` counts (R15).
"""
