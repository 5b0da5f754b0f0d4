#!/usr/bin/env bash
# AMFMN on UCM-Captions, all folds, then the test: CARD=0 bash exec/run_amfmn_ucm.sh [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/UCM_AMFMN.yaml ucm "$@"
