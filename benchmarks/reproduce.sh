#!/bin/sh
# The paper's study on its six models: needs a GPU, a model hub, a data-set hub, and HF_TOKEN for the gated models.
#
#   benchmarks/reproduce.sh [OUT]      OUT: default study
#
# Stopped anywhere, it goes on where it was. docs/models.md says what each model needs.
set -eu
out=${1:-study}
bin=${MERA_BIN:-.venv/bin}

"$bin/python" -m pip install -q -c constraints.txt 'datasets>=3'
"$bin/mera" bench \
  --models meta-llama/Llama-3.2-1B meta-llama/Llama-3.2-1B-Instruct google/gemma-2-2b google/gemma-2-2b-it \
           Qwen/Qwen2.5-3B Qwen/Qwen2.5-3B-Instruct \
  --tasks sentiment_analysis yes_no_question mmlu_high_school mmlu_professional sms_spam \
  --methods all --answer-positions last exact --dtype bfloat16 --out "$out"
