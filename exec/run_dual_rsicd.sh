#!/usr/bin/env bash
# The dual encoder on RSICD, all folds, then the test; needs the extra weights (bash exec/environment.sh weights).
#
# Usage: bash exec/run_dual_rsicd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_DUAL.yaml rsicd "$@"
