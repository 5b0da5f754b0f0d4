#!/usr/bin/env bash
# The best recipe for UCM-Captions: the dual encoder tuned on RSICD goes on learning; all folds, then the test.
# Where fold 0 of RSICD_BEST.yaml was not trained yet, it is trained first (5 GB of features, half an hour or more).
# It needs the extra weights (bash exec/environment.sh weights).
#
# Usage: bash exec/run_best_ucm.sh [arguments of exec/run_experiment.sh]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "$train_and_test" "$@"
if [[ ! -f checkpoint/rsicd_best/0/DualEncoder_best.pth.tar ]]; then
  bash exec/run_experiment.sh option/RSICD_BEST.yaml rsicd --folds 0
fi
source exec/run_experiment.sh option/UCM_BEST.yaml ucm "$@"
