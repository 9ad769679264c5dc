package kube

// EnvoyFilters defines Istio's kind EnvoyFilter, in YAML, as far as it matters to tests:
// any object of it is taken.
const EnvoyFilters = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: envoyfilters.networking.istio.io}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: EnvoyFilter, listKind: EnvoyFilterList, plural: envoyfilters, singular: envoyfilter}
  versions:
  - name: v1alpha3
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`
