#!/usr/bin/env bash
# Build Jaeger from the versions pinned in tests/jaeger and print the path of the
# program, which is kept in build/cache under a key of what it is made from.
# A second call waits for the first to end: tests ask for what `make test` began.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/tools/bin:$PATH"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly
# go.sum pins every module; no need to ask the checksum database as well.
export GONOSUMDB='*'

package=github.com/jaegertracing/jaeger/cmd/jaeger
key=$(cat tests/jaeger/go.mod tests/jaeger/go.sum tests/jaeger/tools.go scripts/jaeger.sh |
	sha256sum | cut -c 1-16)
program=$PWD/build/cache/jaeger-$key/jaeger

# What go says, made short: progress TOTAL. A line that is only a package's name is one
# compiled (`go build -v`); what is neither that nor a download is an error.
progress() {
	local line compiled=0 fetched=0
	while IFS= read -r line; do
		if [[ $line == "go: downloading "* ]]; then
			fetched=$((fetched + 1))
			[ $((fetched % 50)) != 0 ] || echo "Jaeger: fetched $fetched modules"
		elif [[ $line =~ ^[A-Za-z0-9./_~-]+$ ]]; then
			compiled=$((compiled + 1))
			[ $((compiled % 100)) != 0 ] || echo "Jaeger: compiled $compiled of at most $1 packages"
		else
			echo "Jaeger: $line"
		fi
	done
}

build() {
	local total seconds=$SECONDS
	mkdir -p "${program%/*}"
	cd tests/jaeger
	echo "Jaeger: reading modules"
	go list -deps $package 2>&1 >"$program.deps" | progress 0
	total=$(wc -l <"$program.deps")
	rm "$program.deps"
	echo "Jaeger: compiling (about 12 minutes on 2 cores when Go's own cache is empty)"
	go build -v -trimpath -buildvcs=false -ldflags='-s -w' -o "$program.part" $package 2>&1 |
		progress "$total"
	mv "$program.part" "$program"
	echo "Jaeger: built in $((SECONDS - seconds)) s"
}

mkdir -p build/cache
exec 9>build/cache/jaeger.lock
flock 9
if [ ! -x "$program" ]; then
	rm -rf build/cache/jaeger-*
	build >&2 9>&-
fi
echo "$program"
