#!/usr/bin/env bash
# GaLR on UCM-Captions, all folds, then the test: CARD=0 bash exec/run_galr_ucm.sh [--set optim.epochs=5 ...]
# Where data/ucm_regions.h5 is missing, it is built by the built-in proposals.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/UCM_GALR.yaml ucm "$@"
