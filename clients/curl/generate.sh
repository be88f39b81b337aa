#!/bin/sh
# One prompt, with and without steering:  ./generate.sh ["prompt" [task]]
# The task defaults to the first that the server lists. Needs curl and python3.
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}
prompt=${1:-'Message: "claim your free prize now" Is this ham or spam? Answer as desk B'}
task=${2:-$(curl -sS --fail-with-body "$url/tasks" | python3 -c 'import json, sys; print(json.load(sys.stdin)["tasks"][0]["name"])')}

body() { # method -> the request as JSON, however the prompt is quoted
    python3 -c '
import json, sys
prompt, task, method = sys.argv[1:]
print(json.dumps({"inputs": prompt, "steering": {"task": task, "method": method}}))
' "$prompt" "$task" "$1"
}

for method in none mera; do
    echo "# method: $method"
    body "$method" | curl -sS --fail-with-body "$url/generate" -H 'Content-Type: application/json' --data-binary @- |
        python3 -m json.tool --no-ensure-ascii
done
