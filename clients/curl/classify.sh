#!/bin/sh
# Two messages of the built-in task, answered in one batch:  ./classify.sh [task]
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}
body='{"task": "'"${1:-demo_spam}"'", "inputs": [{"desk": "A", "text": "See you at noon"}, {"desk": "B", "text": "Claim your prize"}]}'

curl -sS --fail-with-body "$url/classify" -H 'Content-Type: application/json' -d "$body" | python3 -m json.tool --no-ensure-ascii
