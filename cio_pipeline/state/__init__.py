"""All SQL, for SQLite and PostgreSQL. Two sets of tables in one database, and what both use:

- `ledger`: what Customer.io has acknowledged (`ledger_tables`, `acknowledgement`, `customer_states`, `refusals`,
  `in_flight`, `group_commit`), and the lock under which one run at a time delivers (`delivery_lock`);
- `identities`: what each day says about people (`identity_tables`, `identity_queries`, `learned`); `overlay` is for runs that
  store none of it;
- `database`: the connection (`sqlite`, `postgresql`), and what is wrong with it.
"""
