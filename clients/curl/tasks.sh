#!/bin/sh
# The tasks and the artifacts that the server knows:  ./tasks.sh
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}

for path in tasks probes; do
    echo "# GET /$path"
    curl -sS --fail-with-body "$url/$path" | python3 -m json.tool --no-ensure-ascii
done
