#!/usr/bin/env bash
# The whole study in the shell. Usage: examples/study.sh DATA STUDY [options of "chestx train"]
set -euo pipefail
data=$1
export CHESTX_STUDY=$2
shift 2

chestx split "$data"
chestx train "$data" "$@"
chestx sensitivity
chestx prune --method oneshot --amount 0.5
chestx prune --method iterative --steps 3 --amount 0.2
chestx quantize --method dynamic
chestx evaluate
chestx benchmark --device cpu
chestx report
