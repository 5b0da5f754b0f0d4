# Sourced by scripts that put several experiments into one table (reproduce_*.sh, run_ablation_ucm.sh).
# A script names its rows (`row NAME OPTION_FILE KEY=VALUE ...`, or `all_models`) and calls `run_rows`.
# Usage: bash exec/reproduce_ucm.sh [arguments]
#
# Arguments:
#   --full                the longer protocol for a GPU, where a script has two
#   --name NAME           experiments are checkpoint/NAME_<row>; each script has a default, --full adds _full to it
#   --list                print the rows and do nothing
#   --set KEY=VALUE ...   further options of every row
# JOBS=2 trainings run side by side, each with one thread, so that the sums don't depend on their number: by default as many as
# there are processors, at most 4, and one where there is a GPU. CARD=0 chooses the GPU.
# Example: JOBS=2 bash exec/reproduce_ucm.sh --name trial --set optim.epochs=1 k_fold.nums=2
# Run it again after an interruption: it goes on.
# shellcheck shell=bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_arguments "--full --name= --list --set+" "$@"
rows=() size=short name="${given_name:-}" list="${given_list:-no}" extra=("${settings[@]}")
if [[ -n "${given_full:-}" ]]; then size=full; fi

# row NAME OPTION_FILE KEY=VALUE...: one line of the table.
row() { rows+=("$(printf '%q ' "$@")"); }

# all_models PREFIX: the published models with option/PREFIX_<MODEL>.yaml, AMFMN with each of its attentions. The settings are
# those of the arrays `protocol`, and `words` (the models with skip-thoughts), `galr`, `swan`, `mcrn`.
words=() galr=() swan=() mcrn=()
all_models() {
  local prefix="option/$1" attention
  for attention in soft fusion similarity; do
    row "amfmn_$attention" "${prefix}_AMFMN.yaml" "${protocol[@]}" "${words[@]}" "model.cross_attention.att_type=${attention}_att"
  done
  row galr "${prefix}_GALR.yaml" "${protocol[@]}" "${words[@]}" "${galr[@]}"
  row swan "${prefix}_SWAN.yaml" "${protocol[@]}" "${swan[@]}"
  row mcrn "${prefix}_MCRN.yaml" "${protocol[@]}" "${words[@]}" "${mcrn[@]}"
}

# run_rows SET NAME -m MODULE [ARGUMENTS]: train and test all rows on data/SET_precomp; MODULE puts them into checkpoint/NAME.md.
run_rows() {
  local set="$1" program=("${@:3}") folders=() missing=0 line row_name option settings
  if [[ -z "$name" ]]; then name="$2" && [[ $size == short ]] || name+="_full"; fi
  if [[ $list == yes ]]; then
    for line in "${rows[@]}"; do unpack "$line" && echo "$option ${settings[*]}"; done
    return
  fi
  need_environment
  choose_jobs
  prepare "$set"
  for line in "${rows[@]}"; do
    unpack "$line"
    printf '\n==> check %s\n' "$row_name"
    "$python" train.py --check --path_opt "$option" --set "${settings[@]}" || missing=1
    folders+=("checkpoint/${name}_$row_name")
  done
  if ((missing)); then
    echo "==> Mend what is listed above, then run this script again; none of the rows was trained." >&2
    exit 2
  fi
  train_all
  for line in "${rows[@]}"; do
    unpack "$line"
    step "test $row_name" "$python" test.py --path_opt "$option" --set "${settings[@]}"
  done
  step "table" "$python" "${program[@]}" --out "checkpoint/$name.md" "${folders[@]}"
}

# unpack LINE: what `row` packed, into row_name, option and settings.
unpack() {
  local parts
  eval "parts=($1)"
  row_name="${parts[0]}" option="${parts[1]}"
  settings=("${parts[@]:2}" "${extra[@]}" "k_fold.experiment_name=${name}_$row_name")
}

choose_jobs() {
  if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    jobs="${JOBS:-1}"
  else
    jobs="$(cpu_jobs)"
    export OMP_NUM_THREADS=1
  fi
}

# What the rows read and the data set does not bring.
prepare() {
  local set="$1" data="data/$1_precomp"
  if [[ ! -f "$data/train_filename.txt" || ! -d "$data/images" ]]; then
    echo "No data set in $data (captions, file names, and image files in images/). data/README.md says where to get it." >&2
    exit 2
  fi
  make_vocabulary "$data" "$set"
  if [[ "${rows[*]}" == *GALR* ]]; then make_regions "$data" "data/${set}_regions.h5"; fi
  if [[ "${rows[*]}" == *MCRN* ]]; then make_spectrograms "$data" "data/${set}_audios"; fi
}

# Train every fold of every row, $jobs at a time; a fold that fails does not stop the others.
train_all() {
  local line row_name option settings folds fold pids=() labels=() stopped=0 failed=() status place
  trap 'stopped=1; kill -TERM $(jobs -pr) 2>/dev/null || true' TERM INT
  for line in "${rows[@]}"; do
    unpack "$line"
    folds="$("$python" -c 'import sys, option; print(option.load_options(sys.argv[1], sys.argv[2:]).k_fold.nums)' "$option" "${settings[@]}")"
    for ((fold = 0; fold < folds; fold++)); do
      while ((!stopped)) && (($(jobs -pr | wc -l) >= jobs)); do wait -n || true; done
      if ((stopped)); then break 2; fi
      "$python" train.py --path_opt "$option" --folds "$fold" --set "${settings[@]}" > >(sed -u "s/^/[$row_name $fold] /") 2>&1 &
      pids+=($!) labels+=("$row_name fold $fold")
    done
  done
  for place in "${!pids[@]}"; do
    status=0
    wait "${pids[place]}" || status=$?
    # A signal ends the wait, not the training.
    while kill -0 "${pids[place]}" 2>/dev/null; do wait "${pids[place]}" || status=$?; done
    if ((status)); then failed+=("${labels[place]} (exit status $status)"); fi
  done
  trap - TERM INT
  if ((stopped)); then
    echo "==> Stopped; what was reached is saved. Run the same command again to go on." >&2
    exit 75
  fi
  if ((${#failed[@]})); then
    printf '==> FAILED: %s. The reason stands above; mend it and run the same command again.\n' "${failed[@]}" >&2
    exit 1
  fi
}
