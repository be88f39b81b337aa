#!/bin/sh
# The server's own metrics, without comments and histogram buckets:  ./metrics.sh [pattern]
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}

curl -sS --fail-with-body "$url/metrics" | grep "^mera_${1:-}" | grep -v '_bucket{'
