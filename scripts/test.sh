#!/usr/bin/env bash
# Run pytest while Jaeger is being built: `test.sh [PYTEST ARGUMENT...]`.
# The build only takes what processor time nobody else wants, so that tests that measure
# time are not disturbed. Tests that need Jaeger come last and wait for it.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build

setsid chrt --idle 0 scripts/jaeger.sh >build/jaeger.log 2>&1 &
jaeger=$!
# setsid makes it the leader of a process group of its own: the compilers end with it.
trap 'kill -- -$jaeger 2>/dev/null || true' EXIT

.venv/bin/python -m pytest "$@"
