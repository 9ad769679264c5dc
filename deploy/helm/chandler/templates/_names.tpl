{{- /* What everything of a release is called; cut so that suffixes fit. */}}
{{- define "chandler.name" -}}
{{- if .Values.nameOverride -}}
{{- .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains "chandler" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-chandler" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* The cluster-wide objects of two releases must not meet. */}}
{{- define "chandler.clusterName" -}}
{{- printf "%s-%s" (include "chandler.name" .) .Release.Namespace -}}
{{- end -}}

{{- define "chandler.selector" -}}
app.kubernetes.io/name: chandler
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "chandler.labels" -}}
{{ include "chandler.selector" . }}
app.kubernetes.io/component: control-plane
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "chandler.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "chandler.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "chandler.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* The namespaces whose secrets may all be read, with no names. */}}
{{- define "chandler.wholeNamespaces" -}}
{{- range .Values.secrets.namespaces }}
{{ . }}: []
{{- end }}
{{- end -}}
