#!/bin/sh
# Tokens as they come, one event each; the last has the text, the details and the whole mera object:  ./stream.sh [task]
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}
body='{"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}, "steering": {"task": "'"${1:-demo_spam}"'"}, "stream": true}'

curl -sS --fail-with-body --no-buffer "$url/generate" -H 'Content-Type: application/json' -d "$body"
