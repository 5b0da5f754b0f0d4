#!/usr/bin/env bash
# AMFMN on UCM-Captions, all folds, then the test. Usage: bash exec/run_amfmn_ucm.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/UCM_AMFMN.yaml ucm "$@"
