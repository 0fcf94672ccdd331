"""The rules of docs/rules.md: pure functions over pandas and Arrow tables, without I/O. In the order of a day:

- when it is extracted: `properties` and `set_properties` read the JSON; `dropped_set`, `restored_set` (R20);
- when it is learned: `facts` (R1);
- when it is derived: `classify` (R3 to R6, R14, R22) and `stitching` (R16) decide what is sent, and as whose; `operations`
  makes the tables of it, with `event_data` (R12, R13), `event_ids` (R12), `attributes` (R7 to R11), `consent` (R19),
  `customers` (R7, R10, R17) and `items`, the JSON of a request's items.

All use `options`, `limits`, `values` (R2, R9), `distinct_ids` (R14) and `columns`.
"""
