#!/usr/bin/env bash
# Everything that needs a GPU, in at most 8 minutes, unattended, as one Markdown report: the tests marked for CUDA, an epoch of
# AMFMN and of the dual encoder, scores beside those of the CPU, too little memory, throughput of encoding, search, optim.compile.
# Each part has a time limit; one that fails is a section that says why, and the next goes on. Exit status 1: some part failed.
# Without an environment that can run the project, exec/environment.sh makes one first; that takes minutes more.
#
# Usage: bash bench/gpu_check.sh [--device DEVICE] [--small] [--out FILE]
#   --device cuda:1    another GPU than the first; cpu tries the script without one
#   --small            small sizes, to try the script itself
#   --out FILE         the report; by default out/gpu_check.md
# Data: RSICD, where $RSR_DATA/rsicd_precomp or data/rsicd_precomp has its images, else the toy set, enlarged.
# Example: bash bench/gpu_check.sh --device cpu --small
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../exec/common.sh"
check_arguments "--device= --small --out=" "$@"

flags=(--device "${given_device:-cuda}")
if [[ -n "${given_small:-}" ]]; then flags+=(--small); fi
out="${given_out:-out/gpu_check.md}"

list_parts() { parts="$("$python" -m bench.gpu list "${flags[@]}")"; }
status=0
list_parts || status=$?
if ((status == 2)); then exit 2; fi # it has said why
if ((status)); then
  printf "==> %s can't run the project, as said above: exec/environment.sh makes an environment\n" "$python"
  bash exec/environment.sh weights test
  python=.venv/bin/python
  list_parts
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
: >"$work/outcomes.txt"
failed=0 end=$SECONDS
while read -r _ limit; do end=$((end + limit)); done <<<"$parts"
while read -r part limit; do
  if [[ "$part" == compile ]]; then limit=$((end - SECONDS)); fi # the last part has what the others left
  printf '==> %s, at most %d s\n' "$part" "$limit"
  start=$SECONDS status=0
  timeout --kill-after=3 "$limit" "$python" -m bench.gpu "$part" --work "$work" "${flags[@]}" \
    >"$work/$part.log" 2>&1 </dev/null || status=$?
  if ((status != 0 && status != 77)); then
    failed=1
    tail -n 3 "$work/$part.log"
  fi
  printf '%s %d %d %d\n' "$part" "$status" $((SECONDS - start)) "$limit" >>"$work/outcomes.txt"
done <<<"$parts"

"$python" -m bench.gpu report --work "$work" --out "$out" --command "bash bench/gpu_check.sh $*"
exit "$failed"
