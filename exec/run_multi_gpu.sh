#!/usr/bin/env bash
# Trains all folds of one experiment on several GPUs of this machine, then tests on one of them.
#
# Usage: bash exec/run_multi_gpu.sh GPUS OPTION_FILE DATA_SET_NAME [arguments of exec/run_experiment.sh]
# Example: CARD=0,1 bash exec/run_multi_gpu.sh 2 option/RSITMD_AMFMN.yaml rsitmd
# --device cpu trains as many ranks on the CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "GPUS OPTION_FILE DATA_SET_NAME $train_and_test" "$@"
if [[ ! "$1" =~ ^[1-9][0-9]*$ ]]; then refuse "expected a number of GPUs, not '$1'"; fi
export RANKS="$1"
source exec/run_experiment.sh "${@:2}"
