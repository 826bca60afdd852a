#!/usr/bin/env bash
# Build the JVM's opt-in agent (deploy/java) and print where it is: a jar that needs nothing else.
# ASM, which it brings along, is pinned with its hash; the jar is kept in build/cache under a key
# of what it is made from. A second call waits for the first to end.
set -euo pipefail
cd "$(dirname "$0")/.."

source=$PWD/deploy/java
key=$(find "$source" scripts/java_agent.sh -type f -print0 | sort -z | xargs -0 cat |
	sha256sum | cut -c 1-16)
cache=$PWD/build/cache/java-agent-$key

# The weaver and ASM lie where no class loader looks but the agent's own.
build() {
	mvn --batch-mode --quiet -f "$source/pom.xml" dependency:copy-dependencies \
		-DoutputDirectory="$1/jars"
	(cd "$1/jars" && sha256sum --quiet --strict --check "$source/jars.sha256")
	javac --release 17 -Xlint:all -Werror -cp "$1/jars/*" -d "$1/classes" \
		"$source"/src/wirespan/agent/*.java
	mkdir -p "$1/classes/isolated/wirespan/agent"
	mv "$1"/classes/wirespan/agent/Weaver*.class "$1/classes/isolated/wirespan/agent"
	(cd "$1/classes/isolated" && jar --extract --file "$1"/jars/asm-*.jar && rm -r META-INF module-info.class)
	jar --create --file "$1/wirespan-agent.jar" --manifest "$source/MANIFEST.MF" \
		--date 2020-01-01T00:00:00Z -C "$1/classes" .
	rm -r "$1/classes" "$1/jars"
}

mkdir -p build/cache
exec 9>build/cache/java-agent.lock
flock 9
if [ ! -d "$cache" ]; then
	rm -rf build/cache/java-agent-*
	mkdir -p "$cache.part"
	build "$cache.part" >&2 9>&-
	mv "$cache.part" "$cache"
fi
echo "$cache/wirespan-agent.jar"
