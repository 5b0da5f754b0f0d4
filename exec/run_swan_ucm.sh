#!/usr/bin/env bash
# SWAN on UCM-Captions, all folds, then the test: CARD=0 bash exec/run_swan_ucm.sh [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/UCM_SWAN.yaml ucm "$@"
