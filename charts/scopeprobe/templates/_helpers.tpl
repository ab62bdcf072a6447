{{/* The beginning of all names: the release's name, with the chart's unless it is in there already. */}}
{{- define "scopeprobe.name" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "scopeprobe.selector" -}}
app.kubernetes.io/name: scopeprobe-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels, each once: those of the chart take precedence over the user's. Takes (list . component selector users'...). */}}
{{- define "scopeprobe.mergedLabels" -}}
{{- $root := index . 0 -}}
{{- $own := dict
      "app.kubernetes.io/name" (index . 2)
      "app.kubernetes.io/instance" $root.Release.Name
      "app.kubernetes.io/component" (index . 1)
      "app.kubernetes.io/part-of" "scopeprobe"
      "app.kubernetes.io/version" $root.Chart.AppVersion
      "app.kubernetes.io/managed-by" $root.Release.Service
      "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- $labels := dict -}}
{{- range slice . 3 -}}
{{- $labels = mergeOverwrite $labels (deepCopy .) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $labels $own) -}}
{{- end -}}

{{- define "scopeprobe.labels" -}}
{{ include "scopeprobe.mergedLabels" (list . "operator" "scopeprobe-operator" .Values.commonLabels) }}
{{- end -}}

{{- define "scopeprobe.pruneLabels" -}}
{{ include "scopeprobe.mergedLabels" (list . "prune" "scopeprobe-prune" .Values.commonLabels) }}
{{- end -}}

{{/* Annotations of the Job's rights, which exist only while it runs. */}}
{{- define "scopeprobe.pruneRights" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}

{{/* True where Helm installs or upgrades a release: only there can it look into the cluster. */}}
{{- define "scopeprobe.isHelm" -}}
{{- if lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "view" -}}true{{- end -}}
{{- end -}}

{{/* Name of an image. Takes (list . image). A repository whose first part is a registry has no other prefix. */}}
{{- define "scopeprobe.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := ($root.Values.global).imageRegistry | default $root.Values.image.registry -}}
{{- $name := $image.repository -}}
{{- if and $registry (not (regexMatch "^(localhost|[^/]*[.:][^/]*)/" $name)) -}}
{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "scopeprobe.operatorImage" -}}
{{ include "scopeprobe.image" (list . .Values.image) }}
{{- end -}}

{{/* Pod and container security contexts: the Pod Security level `restricted`. */}}
{{- define "scopeprobe.podSecurityContext" -}}
{{ toYaml .Values.operator.podSecurityContext }}
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

{{/* Condition of admission policies: the operator's account makes the request. */}}
{{- define "scopeprobe.byOperator" -}}
- name: by-operator
  expression: request.userInfo.username == {{ printf "system:serviceaccount:%s:%s-operator" .Release.Namespace (include "scopeprobe.name" .) | squote }}
{{- end -}}

{{/* Puts an admission policy in force. Takes (list . policy). */}}
{{- define "scopeprobe.policyBinding" -}}
{{- $root := index . 0 -}}
{{- $policy := printf "%s-operator-%s" (include "scopeprobe.name" $root) (index . 1) -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $policy }}
  labels:
    {{- include "scopeprobe.labels" $root | nindent 4 }}
spec:
  policyName: {{ $policy }}
  validationActions: [Deny]
{{- end -}}
