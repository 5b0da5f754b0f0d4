#!/usr/bin/env bash
# GaLR on RSITMD, all folds, then the test. Usage: bash exec/run_galr_rsitmd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSITMD_GALR.yaml rsitmd "$@"
