#!/usr/bin/env bash
# SWAN on RSITMD, all folds, then the test: CARD=0 bash exec/run_swan_rsitmd.sh [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSITMD_SWAN.yaml rsitmd "$@"
