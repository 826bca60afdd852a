#!/usr/bin/env bash
# Install a pinned, hashed set of Python packages: `python.sh VENV REQUIREMENTS`.
# The virtual environment is made first where there is none.
set -euo pipefail
venv=${1:?virtual environment} requirements=${2:?requirements file}
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ]; then
	if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
		echo "wirespan: $("$python" --version) is too old" >&2
		echo "hint: make PYTHON=/path/to/python3.11 (or newer)" >&2
		exit 1
	fi
	"$python" -m venv "$venv"
fi
# -u: each line as it comes. What is there already is not worth a line.
"$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
	--require-hashes -r "$requirements" |
	sed -u -n -E '/^(Collecting|Building|Installing|ERROR)/ { s/ \(from .*//; s/^/      /; p; }'
