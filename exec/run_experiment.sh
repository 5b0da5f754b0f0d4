#!/usr/bin/env bash
# Trains all folds of one experiment, then tests: bash exec/run_experiment.sh option/UCM_AMFMN.yaml ucm [arguments]
# The second word names the data set: its vocabulary is built from data/<name>_precomp where the file is missing, and so
# are the regions data/<name>_regions.h5 where the option file names them.
# CARD=0 chooses the GPU, RANKS=4 trains on four (docs/distributed.md). Further arguments (--set, --device, --folds) are handed to both train.py and test.py.
# Run it again after an interruption: training carries on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if (($# < 2)); then
  echo "Usage: bash exec/run_experiment.sh OPTION_FILE DATA_SET_NAME [arguments for train.py and test.py]" >&2
  exit 2
fi
option="$1" name="$2"
shift 2
if [[ -n "${CARD:-}" ]]; then export CUDA_VISIBLE_DEVICES="$CARD"; fi

need_environment
make_vocabulary "data/${name}_precomp" "$name"
regions="data/${name}_regions.h5"
if grep -q "local_path: $regions" "$option"; then make_regions "data/${name}_precomp" "$regions"; fi
keywords="data/${name}_keywords"
if grep -q "keywords_path: $keywords" "$option" && [[ ! -f "$keywords/test_keywords.txt" ]]; then
  step "keywords" "$python" -m data.keywords "data/${name}_precomp" --out "$keywords"
fi
launch=("$python")
if ((${RANKS:-1} > 1)); then launch=("$python" -m torch.distributed.run "--nproc_per_node=$RANKS"); fi
step "training" "${launch[@]}" train.py --path_opt "$option" "$@"
step "test" "$python" test.py --path_opt "$option" "$@"
