//go:build tools

// Package kube pins what scripts/kube.sh builds: a kube-apiserver, its etcd, and kubectl.
package kube

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
