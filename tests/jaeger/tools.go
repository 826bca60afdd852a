// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package jaeger pins the Jaeger that the end-to-end test sends its spans to.
// `make jaeger` builds the command named here, from the versions in go.mod.
package jaeger

import _ "github.com/jaegertracing/jaeger/cmd/jaeger"
