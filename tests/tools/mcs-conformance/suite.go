// Package mcsconformance names the suite, so that its module is pinned here. It is built by `go test -c`.
package mcsconformance

import _ "sigs.k8s.io/mcs-api/conformance"
