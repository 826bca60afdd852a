// deploy-check renders the Helm chart with values of several kinds and builds the kustomization,
// as helm and kubectl do, and decodes every document strictly into Kubernetes' own types: an
// unknown field, a wrong type or an unknown kind is an error. What it rendered goes to stdout.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

// Values that reach every branch of the templates.
var cases = map[string]map[string]any{
	"defaults": {},
	"everything": {
		"otlp":         map[string]any{"endpoint": "https://c:4317", "headersSecret": "tokens"},
		"arguments":    []any{"--exclude-port", "22"},
		"nodeSelector": map[string]any{"kubernetes.io/os": "linux"},
		"image":        map[string]any{"tag": "x"},
		"env":          []any{map[string]any{"name": "OTEL_EXPORTER_OTLP_CERTIFICATE", "value": "/tls/ca.crt"}},
		"volumes": []any{map[string]any{
			"name": "tls", "secret": map[string]any{"secretName": "wirespan-tls"}}},
		"volumeMounts": []any{map[string]any{"name": "tls", "mountPath": "/tls", "readOnly": true}},
	},
	"no tolerations": {"tolerations": []any{}},
}

func main() {
	root := os.Args[1]
	scheme := runtime.NewScheme()
	utilruntime.Must(apps.AddToScheme(scheme))
	utilruntime.Must(core.AddToScheme(scheme))
	options := json.SerializerOptions{Yaml: true, Strict: true}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, options)
	failed := 0
	check := func(from, text string) {
		for _, document := range strings.Split(text, "\n---\n") {
			if strings.TrimSpace(document) == "" {
				continue
			}
			object, kind, err := decoder.Decode([]byte(document), nil, nil)
			if err == nil && object == nil {
				err = fmt.Errorf("nothing in it")
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "wirespan: %s: %v\n", from, err)
				failed++
				continue
			}
			fmt.Printf("# %s: %s\n%s\n---\n", from, kind.Kind, strings.TrimSpace(document))
		}
	}
	names := make([]string, 0, len(cases))
	for name := range cases {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		text, err := render(filepath.Join(root, "chart"), cases[name])
		if err != nil {
			fmt.Fprintf(os.Stderr, "wirespan: chart, %s: %v\n", name, err)
			failed++
			continue
		}
		check("chart, "+name, text)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(
		filesys.MakeFsOnDisk(), filepath.Join(root, "base"))
	if err == nil {
		var text []byte
		if text, err = built.AsYaml(); err == nil {
			check("kustomization", string(text))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "wirespan: kustomization: %v\n", err)
		failed++
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// render does what `helm template` does, with a missing value being an error.
func render(directory string, values map[string]any) (string, error) {
	loaded, err := loader.Load(directory)
	if err != nil {
		return "", err
	}
	if err := loaded.Validate(); err != nil {
		return "", err
	}
	release := chartutil.ReleaseOptions{Name: "wirespan", Namespace: "tracing"}
	all, err := chartutil.ToRenderValues(loaded, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return "", err
	}
	made, err := engine.Engine{Strict: true}.Render(loaded, all)
	if err != nil {
		return "", err
	}
	parts := make([]string, 0, len(made))
	for _, part := range made {
		parts = append(parts, part)
	}
	return strings.Join(parts, "\n---\n"), nil
}
