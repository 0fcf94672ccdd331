"""What is sent to Customer.io, and how. In the order of a delivery:

- `delivery`: the loop over a day's shards, which begins with
- `selection`: the rows to look at, without those who are suppressed (`suppression`, `suppression_list`) or beyond the limit;
- `plan`: what of them is still to be sent, given what was `delivered` and is `in_flight`; for refused items, `redelivery`;
- `batches`: lanes, and the requests of each;
- `sender`: the requests of a lane, one after another, and what the ledger records of each answer;
- `client`: HTTP, at most as fast as `rate_limit` allows;
- `answers`: what Customer.io has answered;
- `counts`: the names of what is counted.

Beside these, `forecast` counts what a run would send, `day_order` tries an undecided day again, and `sample` shows some of what
is sent.
"""
