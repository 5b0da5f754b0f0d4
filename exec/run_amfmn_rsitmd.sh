#!/usr/bin/env bash
# AMFMN on RSITMD, all folds, then the test. Usage: bash exec/run_amfmn_rsitmd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSITMD_AMFMN.yaml rsitmd "$@"
