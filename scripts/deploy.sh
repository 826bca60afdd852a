#!/usr/bin/env bash
# Check what is in deploy/: `deploy.sh`. The unit by systemd's own tools, the manifests by
# rendering and by decoding them strictly into Kubernetes' types (tests/deploy, built once and
# kept in build/cache). Writes docs/reference/deploy.md with `deploy.sh --write`; `--rendered`
# prints the manifests and does no more.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/tools/bin:$PATH"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GONOSUMDB='*'

key=$(cat tests/deploy/go.mod tests/deploy/go.sum tests/deploy/main.go | sha256sum | cut -c 1-16)
program=$PWD/build/cache/deploy-$key/deploy-check
mkdir -p build/cache
exec 9>build/cache/deploy.lock
flock 9
if [ ! -x "$program" ]; then
	rm -rf build/cache/deploy-*/
	mkdir -p "${program%/*}"
	echo "deploy: compiling tests/deploy (some minutes on 2 cores when Go's own cache is empty)" >&2
	(cd tests/deploy && go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$program.part" .) 9>&-
	mv "$program.part" "$program"
fi
rendered=$("$program" deploy/kubernetes)
[ "${1:-}" != --rendered ] || { echo "$rendered"; exit; }
documents=$(grep -c '^# .*: [A-Z][A-Za-z]*$' <<<"$rendered")
echo "deploy: $documents rendered documents are valid"

command -v systemd-analyze >/dev/null || {
	echo "wirespan: systemd-analyze is not here" >&2
	echo "hint: apt-get install systemd" >&2
	exit 1
}
unit=deploy/systemd/wirespan.service
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The command need not be installed here for the unit to be verified.
sed "s|^ExecStart=/opt/wirespan/bin/wirespan|ExecStart=/bin/true|" $unit >"$scratch/wirespan.service"
systemd-analyze verify "$scratch/wirespan.service"
score=$(systemd-analyze security --offline=yes --no-pager $unit | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
[ -n "$score" ] || { echo "deploy: systemd-analyze gave no score" >&2; exit 1; }
echo "deploy: systemd-analyze security: exposure $score"
[ "${1:-}" != --write ] || cat >docs/reference/deploy.md <<PAGE
# What deploy/ was checked with

Written by \`scripts/deploy.sh --write\` on $(date -u +%F), systemd $(systemd-analyze --version | awk 'NR == 1 {print $2}'), Helm $(awk '$1 == "helm.sh/helm/v3" {print $2}' tests/deploy/go.mod), kustomize $(awk '$1 == "sigs.k8s.io/kustomize/api" {print $2}' tests/deploy/go.mod), Kubernetes' types $(awk '$1 == "k8s.io/api" {print $2}' tests/deploy/go.mod).

| | |
|---|---|
| \`systemd-analyze verify\` of wirespan.service | nothing to say |
| \`systemd-analyze security\`, exposure from 0 (none) to 10 | $score |
| documents rendered from chart and kustomization, decoded strictly | $documents |
PAGE
