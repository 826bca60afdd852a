#!/usr/bin/env bash
# Fetch and build a peer of the gRPC tests: `peers.sh go|node|java` prints what runs it.
# What is fetched is pinned with hashes beside the workload and kept in build/cache under a
# key of what it is made from. A second call waits for the first to end.
#
#   go    the program
#   node  the folder for NODE_PATH
#   java  the folder for the class path: classes and jars
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/tools/bin:$PATH"

peer=${1:?go, node or java}
workload=tests/root/workloads/grpc/$peer

# go.sum pins every module; no need to ask the checksum database as well.
build_go() {
	(cd $workload && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GONOSUMDB='*' \
		go build -trimpath -buildvcs=false -o "$1/echo" .)
}

build_node() {
	cp $workload/package.json $workload/package-lock.json "$1"
	(cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
}

# Maven pins versions; jars.sha256 pins what they contain.
build_java() {
	mvn --batch-mode --quiet -f $workload/pom.xml dependency:copy-dependencies \
		-DoutputDirectory="$1"
	(cd "$1" && sha256sum --quiet --strict --check "$OLDPWD/$workload/jars.sha256")
	javac -cp "$1/*" -d "$1" $workload/Echo.java
}

case $peer in
go) result=echo ;;
node) result=node_modules ;;
java) result=. ;;
*)
	echo "usage: peers.sh go|node|java" >&2
	exit 2
	;;
esac

key=$(cat scripts/peers.sh $workload/* | sha256sum | cut -c 1-16)
cache=$PWD/build/cache/grpc-$peer-$key

mkdir -p build/cache
exec 9>"build/cache/grpc-$peer.lock"
flock 9
if [ ! -d "$cache" ]; then
	rm -rf build/cache/grpc-"$peer"-*
	mkdir -p "$cache.part"
	"build_$peer" "$cache.part" >&2 9>&-
	mv "$cache.part" "$cache"
fi
echo "$cache/$result"
