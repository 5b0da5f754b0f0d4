#!/usr/bin/env bash
# Trains all folds of one experiment, then tests. Run it again after an interruption: training carries on where it stopped.
#
# Usage: bash exec/run_experiment.sh OPTION_FILE DATA_SET_NAME [arguments]
# Example: CARD=0 bash exec/run_experiment.sh option/UCM_AMFMN.yaml ucm --set optim.epochs=5
# DATA_SET_NAME is that of data/<name>_precomp, from which the vocabulary is built where its file is missing, and so are the
# regions data/<name>_regions.h5 (by the built-in proposals) and the keywords data/<name>_keywords where the options name them.
#
# Arguments, handed to both train.py and test.py:
#   --set KEY=VALUE ...   other values than the option file's (docs/options.md)
#   --device DEVICE       cpu, cuda or cuda:NUMBER; by default CUDA where there is one
#   --folds 0,2           only these folds
#   --force               load weights of another vocabulary, model or data set all the same
# CARD=0 chooses the GPU, RANKS=4 trains on four GPUs (docs/distributed.md); the test and quickstart.sh take one.
# Example: CARD=0 bash exec/run_amfmn_ucm.sh --set optim.epochs=5 dataset.workers=8 --folds 0,1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "OPTION_FILE DATA_SET_NAME $train_and_test" "$@"
option="$1" name="$2"
shift 2
if [[ ! -f "$option" ]]; then refuse "there is no option file '$option'"; fi

need_environment
make_vocabulary "data/${name}_precomp" "$name"
resolved="$("$python" -m option --path_opt "$option" --set ${settings[@]+"${settings[@]}"})" # it may extend another file
regions="data/${name}_regions.h5"
if grep -q "local_path: $regions" <<<"$resolved"; then make_regions "data/${name}_precomp" "$regions"; fi
keywords="data/${name}_keywords"
if grep -q "keywords_path: $keywords" <<<"$resolved" && [[ ! -f "$keywords/test_keywords.txt" ]]; then
  step "keywords" "$python" -m data.keywords "data/${name}_precomp" --out "$keywords"
fi
launch=("$python")
if ((${RANKS:-1} > 1)); then launch=("$python" -m torch.distributed.run "--nproc_per_node=$RANKS"); fi
step "training" "${launch[@]}" train.py --path_opt "$option" "$@"
step "test" "$python" test.py --path_opt "$option" "$@"
