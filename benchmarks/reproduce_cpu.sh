#!/bin/sh
# The paper's study on small models: trained here from real data, measured here, on two cores and without a network.
#
#   MERA_DATA=DIR benchmarks/reproduce_cpu.sh [OUT]      DIR: the task data (see benchmarks/cpu_models.py); OUT: default study_cpu
#
# Stopped anywhere, it goes on where it was. Ends with OUT/table.md, results.json, results.parquet and plots/.
set -eu
out=${1:-study_cpu}
: "${MERA_DATA:?set MERA_DATA to the folder of data sets}"
bin=${MERA_BIN:-.venv/bin}

[ -e "$out/made" ] || { "$bin/python" benchmarks/cpu_models.py --data "$MERA_DATA" --out "$out/made.new" && mv "$out/made.new" "$out/made"; }

tasks=""
for task in sms_planted sms_eager sms_spam sentiment_analysis yes_no_question mmlu_high_school; do
  tasks="$tasks $out/made/tasks/$task.toml"
done

# shellcheck disable=SC2086
"$bin/mera" bench --models "$out/made/llama-1m" "$out/made/qwen2-2m" --tasks $tasks --out "$out" \
  --methods none prompt additive-error contrastive mera-best-euclidean mera-best-covariance mera-logistic-covariance \
  mera-contrastive-100-euclidean mera logit_bias certified-best

# The research code's arithmetic beside ours, where there is something to repair: one prompt at a time, so on one task only.
"$bin/mera" bench --models "$out/made/llama-1m" --tasks "$out/made/tasks/sms_planted.toml" --out "$out/reference" \
  --methods none mera --compat reference
