#!/bin/sh
# The study on real language models, on two cores and without a network: every method of `mera methods` on each model and task.
#
#   MERA_DATA=DIR benchmarks/reproduce_real.sh OUT MODEL...      DIR: the task data (see benchmarks/real_tasks.py); MODEL: folders,
#                                                                .gguf files or hub ids
#
#   METHODS="none mera certified-best" and TASKS="sms_spam" take a part of it. Stopped anywhere, it goes on where it was, and what the model
# does by itself is collected once for all methods of a pair: several sessions are one study. Ends with OUT/table.md, results.json,
# results.parquet and plots/.
set -eu
out=${1:?usage: MERA_DATA=DIR benchmarks/reproduce_real.sh OUT MODEL...}
shift
: "${1:?give one model or more: folders, .gguf files or hub ids}"
: "${MERA_DATA:?set MERA_DATA to the folder of data sets}"
bin=${MERA_BIN:-.venv/bin}

"$bin/python" benchmarks/real_tasks.py --data "$MERA_DATA" --out "$out/tasks" > /dev/null
tasks=""
for task in ${TASKS:-sms_spam sms_spam_1 sms_spam_2 sentiment_analysis yes_no_question mmlu_high_school}; do
  tasks="$tasks $out/tasks/$task.toml"
done

# shellcheck disable=SC2086
"$bin/mera" bench --models "$@" --tasks $tasks --methods ${METHODS:-all} --keep --out "$out"
