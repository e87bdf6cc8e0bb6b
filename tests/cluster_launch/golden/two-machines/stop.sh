#!/bin/bash
# Stops this cluster's Ray on this machine, and no other (`ray stop` would stop all of yours).
set -euo pipefail
folder=/tmp/r-6e9a1ab2
for file in "$folder"/worker.pid "$folder"/head.pid; do
    if [ -r "$file" ]; then kill -TERM "$(cat "$file")" 2>/dev/null || true; rm -f -- "$file"; fi
done
