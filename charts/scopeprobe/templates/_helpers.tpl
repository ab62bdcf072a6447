{{/* The beginning of all names: the release's name, with the chart's unless it is in there already. */}}
{{- define "scopeprobe.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "scopeprobe.selector" -}}
app.kubernetes.io/name: scopeprobe-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "scopeprobe.labels" -}}
{{ include "scopeprobe.selector" . }}
app.kubernetes.io/component: operator
{{ include "scopeprobe.commonLabels" . }}
{{- end -}}

{{- define "scopeprobe.pruneLabels" -}}
app.kubernetes.io/name: scopeprobe-prune
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: prune
{{ include "scopeprobe.commonLabels" . }}
{{- end -}}

{{/* The rights of the Job: there before it, gone after it. */}}
{{- define "scopeprobe.pruneRights" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{- define "scopeprobe.commonLabels" -}}
app.kubernetes.io/part-of: scopeprobe
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "scopeprobe.operatorImage" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "scopeprobe.agentImage" -}}
{{ .Values.agent.image.repository }}:{{ .Values.agent.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* What Kubernetes calls the `restricted` profile. */}}
{{- define "scopeprobe.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "scopeprobe.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "scopeprobe.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}
