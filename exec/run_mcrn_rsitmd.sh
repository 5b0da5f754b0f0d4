#!/usr/bin/env bash
# MCRN on RSITMD, all folds, then the test. Usage: bash exec/run_mcrn_rsitmd.sh [arguments of exec/run_mcrn.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_mcrn.sh" rsitmd "$@"
