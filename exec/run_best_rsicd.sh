#!/usr/bin/env bash
# The best recipe for RSICD: a dual encoder whose towers are tuned, all folds, then the test.
# It needs the extra weights (bash exec/environment.sh weights) and 6 GB of disk for features.
#
# Usage: bash exec/run_best_rsicd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_BEST.yaml rsicd "$@"
