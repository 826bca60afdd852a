#!/usr/bin/env bash
# Apply what is in deploy/kubernetes to a real kube-apiserver with its etcd, both on loopback:
# `kube.sh`. They are built once, with kubectl, from the pins of tests/deploy/kube (ten minutes on
# 2 cores) and kept in build/cache. There are no nodes: what is shown is that it is admitted.
# Writes docs/reference/kube.md with `kube.sh --write`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/tools/bin:$PATH"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GONOSUMDB='*'

pins=tests/deploy/kube
version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' $pins/go.mod)
etcd=$(awk '$1 == "go.etcd.io/etcd/server/v3" {print $2}' $pins/go.mod)
key=$(cat $pins/go.mod $pins/go.sum $pins/tools.go | sha256sum | cut -c 1-16)
bin=$PWD/build/cache/kube-$key
mkdir -p build/cache
exec 9>build/cache/kube.lock
flock 9
if [ ! -x "$bin/kubectl" ]; then
	rm -rf build/cache/kube-*/
	echo "kube: compiling kube-apiserver $version, etcd $etcd and kubectl (ten minutes on 2 cores)" >&2
	for program in go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/{kube-apiserver,kubectl}; do
		(cd $pins && go build -trimpath -buildvcs=false -o "$bin/" \
			-ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version" "$program") 9>&-
	done
fi

scratch=$(mktemp -d)
pids=()
# By their ids, in the order in which they need each other.
end() {
	for pid in "${pids[@]}"; do kill "$pid" && wait "$pid" || true; done
	rm -rf "$scratch"
}
trap end EXIT
ports() {
	python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in held))'
}
read -r client peer secure < <(ports)
openssl genrsa -out "$scratch/key" 2048 2>/dev/null
openssl rsa -in "$scratch/key" -pubout -out "$scratch/pub" 2>/dev/null
token=$(openssl rand -hex 16)
(umask 077 && echo "$token,admin,1,\"system:masters\"" >"$scratch/tokens")

"$bin/server" --data-dir "$scratch/etcd" --listen-peer-urls "http://127.0.0.1:$peer" \
	--listen-client-urls "http://127.0.0.1:$client" \
	--advertise-client-urls "http://127.0.0.1:$client" >"$scratch/etcd.log" 2>&1 9>&- &
pids=("$!")
"$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 \
	--secure-port "$secure" --cert-dir "$scratch/certs" --service-cluster-ip-range 10.0.0.0/24 \
	--service-account-key-file "$scratch/pub" --service-account-signing-key-file "$scratch/key" \
	--service-account-issuer https://kube.test --token-auth-file "$scratch/tokens" \
	--authorization-mode RBAC >"$scratch/api.log" 2>&1 9>&- &
pids=("$!" "${pids[@]}")
kubectl() {
	"$bin/kubectl" --server "https://127.0.0.1:$secure" --insecure-skip-tls-verify \
		--token "$token" --cache-dir "$scratch/cache" "$@"
}
for _ in $(seq 120); do
	kubectl get --raw /readyz >/dev/null 2>&1 && break
	kill -0 "${pids[0]}" || { tail -3 "$scratch/api.log" >&2; exit 1; }
	sleep 0.5
done

kubectl apply --validate=strict -k deploy/kubernetes/base
# The chart as it was rendered, with values of several kinds, each in a namespace of its own.
scripts/deploy.sh --rendered 9>&- >"$scratch/rendered"
number=0
while IFS= read -r name; do
	number=$((number + 1))
	kubectl create namespace "chart-$number" >/dev/null
	awk -v name="# $name" '/^# .*: [A-Z][A-Za-z]*$/ {on = ($0 == name)} on && !/^# /' "$scratch/rendered" |
		sed "s/^  namespace: .*/  namespace: chart-$number/" | kubectl apply --validate=strict -f -
done < <(sed -n 's/^# \(.*chart.*: [A-Z][A-Za-z]*\)$/\1/p' "$scratch/rendered")
admitted=$(kubectl get daemonsets --all-namespaces --no-headers | wc -l)
[ "$admitted" -eq $((number + 1)) ] && [ "$number" -gt 0 ]
echo "kube: $admitted DaemonSets admitted by kube-apiserver $version"
[ "${1:-}" != --write ] || cat >docs/reference/kube.md <<PAGE
# What a kube-apiserver says of deploy/kubernetes

Written by \`make kube ARGS=--write\` on $(date -u +%F): kube-apiserver and kubectl $version, etcd $etcd, \`kubectl apply --validate=strict\`, no nodes.

| | |
|---|---|
| kustomization | namespace and DaemonSet admitted |
| chart, rendered with values of $number kinds | $number DaemonSets admitted |
PAGE
