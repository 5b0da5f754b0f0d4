#!/usr/bin/env bash
# MCRN on one data set, all folds, then the test.
#
# Usage: bash exec/run_mcrn.sh ucm|rsitmd|rsicd|toy [arguments]
# Example: CARD=0 bash exec/run_mcrn.sh ucm --pretrain --set optim.epochs=5
# Spectrograms of the spoken captions are made where data/<name>_audios is missing.
#
# Arguments:
#   --pretrain            pretrain without pairs first and train from that, as the experiment <name>_mcrn_pretrained;
#                         without it, training starts from what the option file says
#   --set, --device, --folds, --force
#                         as in exec/run_experiment.sh: for train.py and test.py, not for the pretraining. For another one run
#                         python pretrain.py --path_opt option/UCM_MCRN_PRETRAIN.yaml --set ... before, which is then left as it is
# CARD=0 chooses the GPU, RANKS=4 trains on four GPUs (docs/distributed.md); the test takes one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "DATA_SET_NAME --pretrain $train_and_test" "$@"
name="$1"
if [[ ! -f "option/${name^^}_MCRN.yaml" ]]; then refuse "there is no option file option/${name^^}_MCRN.yaml for '$name'"; fi
handed_on=()
for argument in "${@:2}"; do
  if [[ "$argument" != --pretrain ]]; then handed_on+=("$argument"); fi
done

need_environment
if [[ "$name" == toy ]]; then
  step "toy data set" "$python" -m data.toy
else
  make_spectrograms "data/${name}_precomp" "data/${name}_audios"
fi
make_vocabulary "data/${name}_precomp" "$name"
start=()
if [[ -n "${given_pretrain:-}" ]]; then
  step "pretraining" "$python" pretrain.py --path_opt "option/${name^^}_MCRN_PRETRAIN.yaml"
  start=(--set "k_fold.experiment_name=${name}_mcrn_pretrained"
    "model.init_from=checkpoint/${name}_mcrn_pretrain/pretrained.pth.tar")
fi
exec bash exec/run_experiment.sh "option/${name^^}_MCRN.yaml" "$name" "${start[@]}" "${handed_on[@]}"
