#!/usr/bin/env bash
# MCRN on RSITMD, all folds, then the test: CARD=0 bash exec/run_mcrn_rsitmd.sh [--pretrain] [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_mcrn.sh" rsitmd "$@"
