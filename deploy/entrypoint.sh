#!/bin/sh
# Each file in /run/secrets becomes a variable of the file's name: secrets that are mounted, not written into the environment.
set -eu
umask 077
for file in "${SECRETS:-/run/secrets}"/[A-Z]*; do
    if [ -r "$file" ]; then
        export "$(basename "$file")=$(cat "$file")"
    fi
done
exec "$@"
