"""The base class of the errors that end a run. The message is one sentence for the user: what is wrong, and what to do.

```
PipelineError
├── SettingsError            settings.errors        a setting is missing or wrong
├── DaysError                defs.partitions        the days asked for are not partitions
├── DaysFailed               defs.failures          some of several days failed
├── NotNow                   defs.jobs.hourly       an hourly run leaves what there is to another run
├── NotExtracted             posthog.source         PostHog's events cannot be read
│   ├── NothingSoFar                                nothing is available yet of a day that is not over
│   └── NotFound             posthog.exports.answers  PostHog has no such export or file
├── NotDelivered             customerio.client      Customer.io accepts nothing until something is fixed
├── Unavailable              http.retry             a service sent no usable answer in several tries
│   ├── UnusableAnswer                              the answer is not the service's own
│   ├── AnswerTooLong                               its answer was longer than allowed
│   └── Undecided            customerio.sender      no answer tells whether an item or the service is at fault
├── DatabaseError            state.database         the ledger's database cannot be used
│   └── LockLost             state.delivery_lock    the delivery lock was lost while sending
├── NotSent                  alerts.send            the mail server did not accept an alert
├── WorkerDied               worker_pool            a worker process ended before its work did
└── StorageError             tables.files           the tables cannot be written, or are not as they were written
    └── NotMaterialized      tables.tables          no run has written the partition that is read
```

Each is raised and caught by its own name. The base class is caught by the command line, by `defs.failures`, which turns it into
a Dagster failure, and where something has to be done first (`defs.jobs.redeliver`, `posthog.exports`) or said instead
(`defs.dead_runs`). Exceptions that a module raises for its own caller to handle, such as `json_text.UnusableJson`, are not
part of the tree: their messages are not sentences.
"""

from __future__ import annotations


def causes(error: BaseException) -> list[BaseException]:
    """Returns the error, and those that led to it, nearest first."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


class PipelineError(Exception):
    """An error whose message can be shown to the user: it quotes no key, no email address and no property."""

    exit_status = 1
    """The exit status of the command line: 1 if a rerun may help, 2 if a setting or an option must be corrected first."""
