#!/usr/bin/env bash
# Makes .venv in the project's root and installs what the project needs into it, or says that this is done already.
#
# Usage: bash exec/environment.sh [EXTRA ...]
#   bash exec/environment.sh              what training and testing need
#   bash exec/environment.sh test plot    the same with extras of pyproject.toml; extras once installed stay
#
# PYTHON=python3.12 chooses the interpreter. pip's own variables choose where packages come from: without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets PyTorch's CPU build, a tenth of the size.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

venv=.venv
stamp="$venv/.installed" # line 1: checksum of what decides the versions, or `unfinished`; line 2: extras
chosen="${PYTHON:-python3}"

fail() {
  printf 'environment: %s\n' "$*" >&2
  exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

check_chosen() {
  command -v "$chosen" >/dev/null ||
    fail "there is no '$chosen' here. Install Python 3.10 or newer, or name one: PYTHON=/path/to/python3 bash exec/environment.sh"
  "$chosen" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, but '$chosen' is Python $(version_of "$chosen")." \
      "Name a newer one: PYTHON=python3.11 bash exec/environment.sh"
}

make_venv() {
  check_chosen
  printf 'environment: making %s with Python %s\n' "$venv" "$(version_of "$chosen")"
  "$chosen" -m venv --clear "$venv" ||
    fail "'$chosen' can't make a virtual environment." \
      "Debian and Ubuntu have that in a package of its own: apt install python$(version_of "$chosen")-venv"
}

known="$(sed -n '/^\[project.optional-dependencies\]/,/^\[tool/s/^\([a-z]*\) = \[.*/\1/p' pyproject.toml | tr '\n' ' ')"
for extra in "$@"; do
  if [[ "$extra" == -* ]]; then refuse "unknown argument '$extra'"; fi
  if [[ " $known" != *" $extra "* ]]; then refuse "there is no extra '$extra' in pyproject.toml, which has: ${known% }"; fi
done

if [[ -n "${PYTHON:-}" && -x "$venv/bin/python" ]]; then
  check_chosen
  [[ "$(version_of "$chosen")" == "$(version_of "$venv/bin/python")" ]] ||
    fail "$venv was made with Python $(version_of "$venv/bin/python"), but PYTHON=$PYTHON is $(version_of "$chosen")." \
      "To change it: rm -r $venv, then the same command again"
fi

wanted="$(cat pyproject.toml exec/constraints.txt | cksum)"
installed="" extras=""
if [[ -f "$stamp" ]]; then
  { read -r installed && read -r extras; } <"$stamp" || true
fi
for extra in "$@"; do
  if [[ " $extras " != *" $extra "* ]]; then
    extras="${extras:+$extras }$extra"
    installed=""
  fi
done
if [[ "$installed" == "$wanted" ]] && "$venv/bin/python" -c '' 2>/dev/null; then
  printf 'environment: %s is up to date\n' "$venv"
  exit 0
fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
printf 'unfinished\n%s\n' "$extras" >"$stamp"
printf 'environment: installing the packages of pyproject.toml%s; PyTorch is by far the largest, so this takes minutes\n' \
  "${extras:+ with: $extras}"
# Installed from a folder of its own, because a build leaves folders beside pyproject.toml.
# Without the rooms beside it the backend builds an empty package: the project is run from its root.
mkdir -p "$venv/project/exec" && cp pyproject.toml LICENSE "$venv/project/" && cp exec/build_backend.py "$venv/project/exec/"
# Of pip's output only the large downloads are news; faults come on its error stream, which stays as it is.
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
  --constraint exec/constraints.txt "./$venv/project${extras:+[${extras// /,}]}" |
  awk '/Downloading.*[MG]B\)/ { sub(/^ +/, ""); print "  " $0; fflush() }
       /^Installing collected/ { print "  Unpacking " NF - 3 " packages"; fflush() }' ||
  fail "installation failed; pip says why above. Nothing is lost: run the same command again to carry on." \
    "Packages come from where pip is told to look (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL)"
printf '%s\n%s\n' "$wanted" "$extras" >"$stamp"
printf 'environment: %s is ready\n' "$venv"
