#!/usr/bin/env bash
# Instructions of each function in eBPF objects, largest first: `insns.sh OBJECT...`.
# Sizes are the symbol table's: 8 bytes an instruction, a 64-bit load counts as two, as
# the verifier counts. Functions in .text are called by the programs above them.
set -euo pipefail

for object in "$@"; do
	echo "$object"
	# value, flags, kind, section, size, [visibility], name
	llvm-objdump-19 -t "$object" |
		awk '$3 == "F" { print $4, $5, $NF }' |
		while read -r section size name; do
			echo "$((16#$size / 8)) $name $section"
		done |
		sort -rn |
		awk '{ printf "%8d  %-28s %s\n", $1, $2, $3; if ($3 != ".text") { sum += $1; n++ } }
			END { printf "%8d  in %d programs\n", sum, n }'
done
