"""Customers' states, on SQLite and on PostgreSQL: two acknowledgements at once lose nothing of each other."""

from __future__ import annotations

import threading
import time

from cio_pipeline.attribute_state import customer_id, name_hash, pack, unpack, value_hash
from cio_pipeline.state import customer_states
from cio_pipeline.state.database import connect, reading, writing
from cio_pipeline.state.ledger_tables import VERSION, metadata

CUSTOMER = customer_id("id:u1")
FIRST, SECOND, THIRD = ({name_hash(name): (value_hash(b"x"), 1)} for name in ("first", "second", "third"))


def test_a_state_that_another_transaction_is_changing_is_waited_for(database_url: str) -> None:
    engine = connect(database_url, metadata, VERSION)

    def change() -> None:
        with writing(engine) as transaction:
            customer_states.merge_into(transaction, {CUSTOMER: pack(THIRD)})

    with writing(engine) as transaction:
        assert customer_states.merge_into(transaction, {CUSTOMER: pack(FIRST)})[1] == 1
    with writing(engine) as transaction:
        assert customer_states.merge_into(transaction, {CUSTOMER: pack(SECOND)})[1] == 0
        other = threading.Thread(target=change)
        other.start()
        time.sleep(0.2)  # it has read the state by now, if it does not wait
    other.join()
    with reading(engine) as connection:
        assert unpack(customer_states.find(connection, [CUSTOMER])[CUSTOMER]) == FIRST | SECOND | THIRD
