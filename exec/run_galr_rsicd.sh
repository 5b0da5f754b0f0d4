#!/usr/bin/env bash
# GaLR on RSICD, all folds, then the test: CARD=0 bash exec/run_galr_rsicd.sh [--set optim.epochs=5 ...]
# Where data/rsicd_regions.h5 is missing, it is built by the built-in proposals.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_GALR.yaml rsicd "$@"
