#!/bin/sh
# A command with the user, settings and folders of the units, for root: cio_pipeline dry-run --partition 2026-03-02
exec systemd-run --quiet --pty --pipe --wait --collect --uid=cio_pipeline --working-directory=/var/lib/cio_pipeline \
    --property=EnvironmentFile=/etc/cio_pipeline/settings.env --property=UMask=0077 \
    --setenv=CIO_DATA_DIR=/var/lib/cio_pipeline/tables --setenv=TMPDIR=/var/lib/cio_pipeline/scratch \
    --setenv=DAGSTER_HOME=/var/lib/cio_pipeline/dagster \
    /opt/cio_pipeline/bin/cio_pipeline "$@"
