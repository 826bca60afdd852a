#!/usr/bin/env bash
# Run libFuzzer on the parsers, one after the other: `fuzz.sh [NAME...]`. NAME is a protocol, as
# in tests/host/fuzz_NAME.dict, whose headers are built with the sanitizers of addresses and of
# undefined behaviour, or a target of tests/fuzz/python.py: hpack, capture.
#
# FUZZ_SECONDS (600) is how long each runs; CLANG (clang-19) builds it. What was found to
# reach new code is kept in build/cache/fuzz/NAME, reduced to what it takes, and begun from the
# next time. An input that fails is left in build/fuzz as NAME-crash-...;
# `build/fuzz/connection FILE` or `python -m tests.fuzz.python NAME FILE` runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-600}
clang=${CLANG:-clang-19}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || {
	# libFuzzer takes 0 for "without end"
	echo "wirespan: FUZZ_SECONDS must be a whole number above 0, not '$seconds'" >&2
	exit 2
}
if [ $# -eq 0 ]; then
	for dictionary in tests/host/fuzz_*.dict; do
		name=${dictionary#tests/host/fuzz_}
		set -- "$@" "${name%.dict}"
	done
	set -- "$@" hpack capture
fi

mkdir -p build/fuzz
scratch=$(mktemp -d build/fuzz/run.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

connection=build/fuzz/connection
build() {
	"$clang" -g -O1 -Wall -Wextra -Werror -Wno-unused -Iebpf -fsanitize=fuzzer,address,undefined \
		-fno-sanitize=function -fno-sanitize-recover=all -o "$scratch/connection" \
		tests/host/fuzz_connection.c tests/host/parsers.c
	# In one step: another run may be using the one before.
	mv "$scratch/connection" "$connection"
}

built=
for name in "$@"; do
	kept=build/cache/fuzz/$name
	seeds=$scratch/$name-seeds
	mkdir -p "$kept"
	if [ -e "tests/host/fuzz_$name.dict" ]; then
		[ -n "$built" ] || build
		built=yes
		.venv/bin/python -m tests.host.seeds "$name" "$seeds"
		target=("$connection" "-dict=tests/host/fuzz_$name.dict")
	else
		.venv/bin/python -m tests.fuzz.python "$name" --seeds "$seeds"
		target=(.venv/bin/python -m tests.fuzz.python "$name")
	fi
	echo "fuzz $name: $seconds s from $(find "$seeds" -type f | wc -l) seeds" \
		"and $(find "$kept" -type f | wc -l) inputs found before"
	# No input may take 5 s, nor all that is kept 1 GiB; 4096 bytes hold several messages.
	UBSAN_OPTIONS=print_stacktrace=1 "${target[@]}" -max_total_time="$seconds" \
		-max_len=4096 -timeout=5 -rss_limit_mb=1024 -artifact_prefix="build/fuzz/$name-" \
		-print_final_stats=1 "$kept" "$seeds" >"$scratch/log" 2>&1 || {
		tail -n 60 "$scratch/log" >&2
		echo "fuzz $name: failed" >&2
		echo "hint: run that input again: ${target[*]} build/fuzz/$name-..." >&2
		exit 1
	}
	grep -oE 'cov: [0-9]+ ft: [0-9]+' "$scratch/log" | tail -n 1
	grep -E '^(Done|stat::(average_exec_per_sec|new_units_added))' "$scratch/log"
	# Atheris can't: what it is asked to merge in a process of its own comes back empty.
	if [ "$seconds" -ge 60 ] && [ "${target[0]}" = "$connection" ]; then
		mkdir "$scratch/$name-kept"
		"${target[@]}" -merge=1 -max_len=4096 "$scratch/$name-kept" "$kept" "$seeds" \
			>"$scratch/log" 2>&1
		[ -n "$(ls -A "$scratch/$name-kept")" ]
		rm -rf "$kept"
		mv "$scratch/$name-kept" "$kept"
	fi
done
