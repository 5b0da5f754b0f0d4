#!/usr/bin/env bash
# MCRN on RSICD, all folds, then the test: CARD=0 bash exec/run_mcrn_rsicd.sh [--pretrain] [--set optim.epochs=5 ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_mcrn.sh" rsicd "$@"
