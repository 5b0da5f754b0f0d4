# Sourced by the other scripts: the project's root as working folder, --help, the interpreter, memory settings, named steps.
# shellcheck shell=bash

if [[ "$0" == /* ]]; then started="$0"; else started="$PWD/$0"; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# usage: the comment at the head of the script that was started; where that names the "arguments of" another script, also what
# the other's comment says from its line "Arguments" on.
usage() {
  local text
  text="$(head_comment "$started")"
  printf '%s\n' "$text"
  if [[ "$text" =~ "arguments of "(exec/[a-z0-9_]+\.sh) ]]; then
    printf '\n' && head_comment "${BASH_REMATCH[1]}" | sed -n '/^Arguments/,$p'
  fi
}
head_comment() { sed -n -e '/^#!/d' -e '/^# shellcheck/d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"; }

# Whatever sources this file answers --help here, before it does anything.
for argument in "$@"; do
  if [[ "$argument" == -h || "$argument" == --help ]]; then usage; exit; fi
done

refuse() {
  printf '%s: %s; --help shows the usage\n' "${0##*/}" "$*" >&2
  exit 2
}

# check_arguments "WORD ... --flag ..." ARGUMENT...: refuses what is none of these: first the words, then flags in any order.
# `--flag` takes no value, `--flag=` one, `--flag+` one or more of the form KEY=VALUE. What was given is left in
# `given_flag` (the value, or `yes` where there is none), the values of `--flag+` in the array `settings`.
check_arguments() {
  local known="$1" word flag values
  settings=()
  unset "${!given_@}"
  shift
  for word in $known; do
    if [[ "$word" == --* ]]; then break; fi
    if [[ -z "${1:-}" || "$1" == -* ]]; then refuse "expected $word${1:+, not '$1'}"; fi
    shift
  done
  known=" $known "
  while (($#)); do
    flag="${1%%=*}" values=()
    if [[ "$flag" != --* ]]; then refuse "unknown argument '$1'"; fi
    if [[ "$1" == *=* ]]; then values=("${1#*=}"); fi
    shift
    if [[ "$known" == *" $flag "* ]]; then
      if ((${#values[@]})); then refuse "$flag takes no value"; fi
      printf -v "given_${flag#--}" yes
    elif [[ "$known" == *" $flag="* ]]; then
      if ((!${#values[@]})) && [[ "${1:--}" != -* ]]; then values=("$1") && shift; fi
      if [[ -z "${values[*]:-}" ]]; then refuse "$flag needs a value"; fi
      printf -v "given_${flag#--}" %s "${values[0]}"
    elif [[ "$known" == *" $flag+"* ]]; then
      if ((!${#values[@]})); then
        while [[ "${1:--}" != -* ]]; do values+=("$1") && shift; done
      fi
      if [[ -z "${values[*]:-}" ]]; then refuse "$flag needs a value, KEY=VALUE"; fi
      for word in "${values[@]}"; do
        if [[ "$word" != ?*=* ]]; then refuse "$flag $word: expected KEY=VALUE"; fi
      done
      settings+=("${values[@]}")
    else
      refuse "unknown argument '$flag'"
    fi
  done
}
# shellcheck disable=SC2034  # read by the scripts that source this file
train_and_test="--set+ --device= --folds= --force" # the flags that train.py and test.py both take

# The project's own environment where exec/environment.sh has made one, else the environment that is active.
# shellcheck disable=SC2034  # read by the scripts that source this file
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python="$(command -v python || echo python3)"; fi

if [[ -n "${CARD:-}" ]]; then export CUDA_VISIBLE_DEVICES="$CARD"; fi

# glibc hands large freed blocks back to the kernel, and the next tensor pays for its memory again, one page fault per 4 KiB.
# Training on the CPU frees and takes the same sizes in every step, so keeping up to 4 GiB of them saves up to a third of the
# time for some more memory. Set to other values to choose; other C libraries take no notice.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

# step NAME COMMAND...: runs a command under a headline; where it fails, says which step that was and ends the script.
# SIGTERM and SIGINT are passed on to it, and waited for: a training saves its state and ends with status 75.
step() {
  local name="$1" start=$SECONDS status=0 child interrupted=1
  shift
  printf '\n==> %s\n' "$name"
  "$@" &
  child=$!
  trap 'interrupted=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while ((interrupted)); do
    interrupted=0 status=0
    wait "$child" || status=$?
  done
  trap - TERM INT
  if ((status == 75)); then
    printf '==> %s: stopped after %d s, its state is saved. Run the same command again to go on.\n' "$name" $((SECONDS - start)) >&2
    exit "$status"
  fi
  if ((status != 0)); then
    printf '==> %s: FAILED after %d s (exit status %d). The reason stands above; mend it and run the same command again.\n' \
      "$name" $((SECONDS - start)) "$status" >&2
    exit "$status"
  fi
  printf '==> %s: done in %d s\n' "$name" $((SECONDS - start))
}

# How many processes run side by side on the CPU: JOBS, by default one per processor, at most 4.
cpu_jobs() {
  local processors
  processors="$(env -u OMP_NUM_THREADS nproc)" # nproc heeds the variable, which speaks of threads per process
  echo "${JOBS:-$((processors < 4 ? processors : 4))}"
}

need_environment() {
  if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    echo "'$python' has no PyTorch. Make the project's environment first: bash exec/environment.sh" >&2
    exit 1
  fi
}

# What the experiments of a data set's folder read besides it, made where it is missing.
make_vocabulary() { # DATA NAME
  [[ -f "vocab/$2_splits_vocab.json" ]] || step "vocabulary" "$python" -m vocab --data_path "$1" --data_name "$2"
}
make_regions() { # DATA FILE
  [[ -f "$2" ]] || step "regions" "$python" -m data.regions build --images "$1/images" --out "$2"
}
make_spectrograms() { # DATA FOLDER
  [[ -f "$2/test_audios.txt" ]] || step "spoken captions" "$python" -m data.audio speak --data_path "$1" "$2"
}
