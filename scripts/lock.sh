#!/usr/bin/env bash
# Pin requirements/*.txt from pyproject.toml, with hashes: `lock.sh [--upgrade]`.
# Without --upgrade a pin that still fits stays.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=build/tools/uv/bin/uv
if [ ! -x $uv ]; then
	"${PYTHON:-python3}" -m venv build/tools/uv
	build/tools/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
fi

lock() {
	$uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" "${upgrade[@]}" "$@"
}

upgrade=("$@")
lock pyproject.toml --group build --output-file requirements/runtime.txt
lock pyproject.toml --group dev --constraint requirements/runtime.txt \
	--output-file requirements/dev.txt
lock --group compare --output-file requirements/compare.txt
lock --group go --output-file requirements/go.txt
