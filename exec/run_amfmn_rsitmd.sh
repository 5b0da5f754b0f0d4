#!/usr/bin/env bash
# AMFMN on RSITMD, all folds, then the test: CARD=0 bash exec/run_amfmn_rsitmd.sh [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSITMD_AMFMN.yaml rsitmd "$@"
