#!/usr/bin/env bash
# Generate proto/ from its .proto files: `proto.sh` writes, `proto.sh --check` compares.
set -euo pipefail
cd "$(dirname "$0")/.."

generate() {
	find proto -name '*.proto' -print0 | sort -z |
		xargs -0 .venv/bin/python -m grpc_tools.protoc -I. \
			--python_out="$1" --pyi_out="$1" --grpc_python_out="$1"
}

if [ "${1:-}" != --check ]; then
	generate .
	exit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
generate "$scratch"
same=0
while IFS= read -r -d '' file; do
	if ! diff -u "$file" "$scratch/$file"; then same=1; fi
done < <(cd "$scratch" && find proto -type f -print0)
if [ $same != 0 ]; then
	echo "wirespan: generated code is not what its .proto files give" >&2
	echo "hint: make fix" >&2
fi
exit $same
