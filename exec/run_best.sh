#!/usr/bin/env bash
# The best recipes: a dual encoder whose towers learn on RSICD, then on UCM from there, each to its averaged table.
# It needs the extra weights (bash exec/environment.sh weights) and 7 GB of disk for features.
#
# Usage: bash exec/run_best.sh [arguments of exec/run_experiment.sh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "$train_and_test" "$@"
bash exec/run_experiment.sh option/RSICD_BEST.yaml rsicd "$@"
bash exec/run_experiment.sh option/UCM_BEST.yaml ucm "$@"
