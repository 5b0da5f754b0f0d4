#!/usr/bin/env bash
# Trains all folds of one experiment on several GPUs of this machine, then tests on one of them:
#   bash exec/run_multi_gpu.sh GPUS OPTION_FILE DATA_SET_NAME [arguments]
# CARD=0,1 chooses the GPUs. All else is as in exec/run_experiment.sh; --device cpu trains as many ranks on the CPU.
set -euo pipefail

if (($# < 3)) || [[ ! "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "Usage: bash exec/run_multi_gpu.sh GPUS OPTION_FILE DATA_SET_NAME [arguments for train.py and test.py]" >&2
  exit 2
fi
ranks="$1"
shift
RANKS="$ranks" exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" "$@"
