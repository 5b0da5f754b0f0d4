# Sourced by the reproduce_*.sh scripts: all models on one data set under one protocol, and the table of it.
# A script names its rows (`row NAME OPTION_FILE KEY=VALUE ...`) and calls `reproduce SET "$@"`. Arguments of all of them:
#   --full             the published size and length in place of the short protocol, where a script has both; for a GPU
#   --name NAME        experiments are checkpoint/NAME_<row> (default reproduce_<set>, with _full behind it for --full)
#   --set KEY=VALUE..  further options of every row, last
# JOBS trainings run side by side, each with one thread, so that the sums don't depend on their number: by default as many as
# there are processors, at most 4, and one where there is a GPU. Run it again after an interruption: it goes on.
# shellcheck shell=bash
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rows=() size=short
if [[ " $* " == *" --full "* ]]; then size=full; fi

# row NAME OPTION_FILE KEY=VALUE...: one line of the table.
row() { rows+=("$(printf '%q ' "$@")"); }

reproduce() {
  local set="$1" name="" extra=() folders=() missing=0 line words settings
  shift
  while (($#)); do
    case "$1" in
      --full) shift ;;
      --name) name="${2:?--name needs a name}" && shift 2 ;;
      --set) extra+=("${@:2}") && break ;;
      *) echo "Unknown argument $1. Usage: [--full] [--name NAME] [--set KEY=VALUE ...]" >&2 && exit 2 ;;
    esac
  done
  if [[ -z "$name" ]]; then name="reproduce_$set" && [[ $size == short ]] || name+="_full"; fi
  choose_jobs

  prepare "$set"
  for line in "${rows[@]}"; do
    eval "words=($line)"
    settings=("${words[@]:2}" "${extra[@]}" "k_fold.experiment_name=${name}_${words[0]}")
    printf '\n==> check %s\n' "${words[0]}"
    "$python" train.py --check --path_opt "${words[1]}" --set "${settings[@]}" || missing=1
    folders+=("checkpoint/${name}_${words[0]}")
  done
  if ((missing)); then
    echo "==> Mend what is listed above, then run this script again; nothing was trained." >&2
    exit 2
  fi
  train_all "$name" "${extra[@]}"
  for line in "${rows[@]}"; do
    eval "words=($line)"
    settings=("${words[@]:2}" "${extra[@]}" "k_fold.experiment_name=${name}_${words[0]}")
    step "test ${words[0]}" "$python" test.py --path_opt "${words[1]}" --set "${settings[@]}"
  done
  draw_table "$set" "checkpoint/$name.md" "${folders[@]}"
}

# draw_table SET FILE EXPERIMENT...: what is shown in the end; a script may have another.
draw_table() { step "table" "$python" reproduction_table.py "${@:3}" --published "${1%150}" --out "$2"; }

choose_jobs() {
  if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    jobs="${JOBS:-1}"
  else
    local processors
    processors="$(nproc)"
    jobs="${JOBS:-$((processors < 4 ? processors : 4))}"
    export OMP_NUM_THREADS=1
  fi
}

# What the rows read and the data set does not bring: vocabulary, regions, spoken captions.
prepare() {
  local set="$1" data="data/$1_precomp" wanted="${rows[*]}"
  if [[ ! -f "$data/train_filename.txt" || ! -d "$data/images" ]]; then
    echo "No data set in $data (captions, file names, and pictures in images/). data/README.md says where to get it." >&2
    exit 2
  fi
  if [[ ! -f "vocab/${set%150}_splits_vocab.json" ]]; then
    step "vocabulary" "$python" -m vocab --data_path "$data" --data_name "${set%150}"
  fi
  if [[ "$wanted" == *GALR* && ! -f "data/${set}_regions.h5" ]]; then
    step "regions" "$python" -m data.regions build --images "$data/images" --out "data/${set}_regions.h5"
  fi
  if [[ "$wanted" == *MCRN* && ! -f "data/${set}_audios/test_audios.txt" ]]; then
    step "spoken captions" "$python" -m data.audio speak --data_path "$data" "data/${set}_audios"
  fi
}

# Train every fold of every row, $jobs at a time; a fold that fails does not stop the others.
train_all() {
  local name="$1" extra=("${@:2}") line words settings folds fold pids=() labels=() stopped=0 failed=() status place
  trap 'stopped=1; kill -TERM $(jobs -pr) 2>/dev/null || true' TERM INT
  for line in "${rows[@]}"; do
    eval "words=($line)"
    settings=("${words[@]:2}" "${extra[@]}" "k_fold.experiment_name=${name}_${words[0]}")
    folds="$("$python" -c 'import sys, option; print(option.load_options(sys.argv[1], sys.argv[2:]).k_fold.nums)' "${words[1]}" "${settings[@]}")"
    for ((fold = 0; fold < folds; fold++)); do
      while ((!stopped)) && (($(jobs -pr | wc -l) >= jobs)); do wait -n || true; done
      if ((stopped)); then break 2; fi
      "$python" train.py --path_opt "${words[1]}" --folds "$fold" --set "${settings[@]}" > >(sed -u "s/^/[${words[0]} $fold] /") 2>&1 &
      pids+=($!) labels+=("${words[0]} fold $fold")
    done
  done
  for place in "${!pids[@]}"; do
    status=0
    wait "${pids[place]}" || status=$?
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
