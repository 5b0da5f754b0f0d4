#!/usr/bin/env bash
# GaLR on RSICD, all folds, then the test. Usage: bash exec/run_galr_rsicd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_GALR.yaml rsicd "$@"
