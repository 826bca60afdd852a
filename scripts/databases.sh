#!/usr/bin/env bash
# Fetch and build what Debian 12 does not have for the tests of databases:
# `databases.sh mysql|go|node|java` prints where it is. What is fetched is pinned with hashes
# beside the workload and kept in build/cache under a key of what it is made from.
# A second call waits for the first to end.
#
#   mysql  the folder of a MySQL 9: bin/mysqld, bin/mysql, share
#   go     the program with go-sql-driver
#   node   the folder for NODE_PATH, with mysql2 and ioredis
#   java   the folder for the class path, with Connector/J
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/tools/bin:$PATH"

part=${1:?mysql, go, node or java}
workload=$PWD/tests/root/workloads/sql

# The mirror that this machine takes Debian's packages from.
mirror() {
	local uri
	# shellcheck disable=SC2016 # apt-get's own variables
	uri=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(REPO_URI)' |
		sed -n 's/^Packages Debian //p' | grep -v security | head -n 1 || true)
	uri=${uri:-http://deb.debian.org/debian}
	echo "${uri%/}"
}

# Fetch the pinned packages; fails if the mirror has newer ones by now.
fetch_pinned() {
	local debs=$1/debs
	mkdir -p "$debs"
	(
		cd "$debs"
		sed -n "s,^[0-9a-f]*  pool,$(mirror)/pool,p" "$workload/mysql.debs" |
			xargs -P 4 -n 6 curl --silent --show-error --fail --retry 3 --remote-name-all
		sed -n 's,^\([0-9a-f]*\)  pool/.*/,\1  ,p' "$workload/mysql.debs" |
			sha256sum --quiet --strict --check
	)
}

# Fetch what sid has now, as apt resolves it for a machine without any package; apt verifies
# Debian's signature.
fetch_newest() {
	local dir=$1/apt
	rm -rf "$1/debs"
	mkdir -p "$dir/lists/partial" "$1/debs/partial"
	: >"$dir/status"
	printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s sid main\n' \
		"$(mirror)" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
		Dir::Etc::SourceList "$dir/sources.list";
		Dir::Etc::SourceParts "-";
		Dir::State::Lists "$dir/lists";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir";
		Dir::Cache::archives "$1/debs";
		APT::Sandbox::User "root";
	END
	APT_CONFIG=$dir/apt.conf apt-get update -qq
	APT_CONFIG=$dir/apt.conf apt-get install -qq -y --no-install-recommends --download-only \
		mysql-server-core mysql-client-core
	rm -rf "$dir"
}

# Its C library is newer than Debian 12's: the programs get another loader and search path,
# which name the folder they will be in.
build_mysql() {
	local at=$1 final=$2 deb
	if ! fetch_pinned "$at"; then
		echo "MySQL: the mirror lacks a version of workloads/sql/mysql.debs; taking the newest"
		fetch_newest "$at"
	fi
	for deb in "$at"/debs/*.deb; do dpkg-deb -x "$deb" "$at/root"; done
	mkdir -p "$at/bin" "$at/lib"
	find "$at/root/usr/lib/$(uname -m)-linux-gnu" -maxdepth 1 -name '*.so*' -exec mv -t "$at/lib" {} +
	mv "$at/root/usr/sbin/mysqld" "$at/root/usr/bin/mysql" "$at/bin"
	mv "$at/root/usr/share/mysql" "$at/share"
	rm -rf "$at/root" "$at/debs"
	local loader
	loader=$(cd "$at/lib" && echo ld-linux-*.so.*)
	for program in mysqld mysql; do
		patchelf --set-interpreter "$final/lib/$loader" --force-rpath --set-rpath "$final/lib" \
			"$at/bin/$program"
	done
}

# go.sum pins every module; no need to ask the checksum database as well.
build_go() {
	(cd "$workload/go" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GONOSUMDB='*' \
		go build -trimpath -buildvcs=false -o "$1/sql" .)
}

build_node() {
	cp "$workload/node/package.json" "$workload/node/package-lock.json" "$1"
	(cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
}

# Maven pins versions; jars.sha256 pins what they contain.
build_java() {
	mvn --batch-mode --quiet -f "$workload/java/pom.xml" dependency:copy-dependencies \
		-DoutputDirectory="$1"
	(cd "$1" && sha256sum --quiet --strict --check "$workload/java/jars.sha256")
	javac -cp "$1/*" -d "$1" "$workload/java/Sql.java"
}

case $part in
mysql) result= made_from=$workload/mysql.debs ;;
go) result=/sql made_from=$workload/go/* ;;
node) result=/node_modules made_from=$workload/node/package*.json ;;
java) result= made_from=$workload/java/* ;;
*)
	echo "usage: databases.sh mysql|go|node|java" >&2
	exit 2
	;;
esac

# shellcheck disable=SC2086 # a pattern
key=$(cat scripts/databases.sh $made_from | sha256sum | cut -c 1-16)
cache=$PWD/build/cache/sql-$part-$key

mkdir -p build/cache
exec 9>"build/cache/sql-$part.lock"
flock 9
if [ ! -d "$cache" ]; then
	rm -rf build/cache/sql-"$part"-*
	mkdir -p "$cache.part"
	"build_$part" "$cache.part" "$cache" >&2 9>&-
	mv "$cache.part" "$cache"
fi
echo "$cache$result"
