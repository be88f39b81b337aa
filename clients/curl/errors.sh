#!/bin/sh
# What errors look like: status, code and a message that names field, value and remedy:  ./errors.sh
set -eu

url=${MERA_URL:-http://127.0.0.1:8000}

try() { # what, then arguments of curl
    echo "# $1"
    shift
    curl -sS -w ' (HTTP %{http_code})\n' "$@"
}

post() { # what, body
    try "$1" "$url/generate" -H 'Content-Type: application/json' -d "$2"
}

post 'not JSON' 'hello'
post 'an unknown field' '{"inputs": "hello", "temprature": 1}'
post 'empty inputs' '{"inputs": ""}'
post 'alpha outside (0, 1)' '{"inputs": "hello", "steering": {"alpha": 2}}'
post 'an unknown task' '{"inputs": "hello", "steering": {"task": "no_such_task"}}'
try 'an unknown route' "$url/no/such/route"
try 'a method that the route does not take' "$url/generate"
