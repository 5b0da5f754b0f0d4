#!/usr/bin/env bash
# SWAN on RSICD, all folds, then the test: CARD=0 bash exec/run_swan_rsicd.sh [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_SWAN.yaml rsicd "$@"
