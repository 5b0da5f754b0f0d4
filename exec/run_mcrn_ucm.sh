#!/usr/bin/env bash
# MCRN on UCM-Captions, all folds, then the test. Usage: bash exec/run_mcrn_ucm.sh [arguments of exec/run_mcrn.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_mcrn.sh" ucm "$@"
