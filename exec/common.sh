# Sourced by the other scripts: the project's root as working folder, the interpreter, memory settings, named steps.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# The project's own environment where exec/environment.sh has made one, else the environment that is active.
# shellcheck disable=SC2034  # read by the scripts that source this file
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python="$(command -v python || echo python3)"; fi

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
