#!/usr/bin/env bash
# GaLR on RSITMD, all folds, then the test: CARD=0 bash exec/run_galr_rsitmd.sh [--set optim.epochs=5 ...]
# Where data/rsitmd_regions.h5 is missing, it is built by the built-in proposals.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSITMD_GALR.yaml rsitmd "$@"
