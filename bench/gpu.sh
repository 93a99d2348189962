#!/bin/sh
# What a GPU gains, in one command and less than ten minutes, with the torch that is there.
#
#   bench/gpu.sh [options of bench/gpu.py]
#
# OUT is the folder of gpu.json and gpu.md (results/bench), PYTHON the interpreter. Installs nothing.
set -eu
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
export PYTHONPATH="$PWD:$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 590 "$PYTHON" bench/gpu.py --out "${OUT:-results/bench}" "$@"
