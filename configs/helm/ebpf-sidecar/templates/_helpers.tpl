{{- define "ebpf-sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The name of BanyanDB's objects: shorter by what the Service of the agent beside it has at its end. */}}
{{- define "ebpf-sidecar.banyandb" -}}
{{ printf "%s-banyandb" (include "ebpf-sidecar.fullname" . | trunc 48 | trimSuffix "-") }}
{{- end }}

{{- define "ebpf-sidecar.labels" -}}
{{ include "ebpf-sidecar.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* By the label app.kubernetes.io/name the ServiceMonitor finds the agent, and the alerts call its job. */}}
{{- define "ebpf-sidecar.selector" -}}
app.kubernetes.io/name: ebpf-sidecar
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ebpf-sidecar.banyandb.selector" -}}
app.kubernetes.io/name: banyandb
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ebpf-sidecar.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* What a pod has for the agent, whatever else is in it. */}}
{{- define "ebpf-sidecar.pod" -}}
# Variables of Services called ebpf-sidecar-… would look like mistyped keys.
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ebpf-sidecar.annotations" -}}
{{- if .Values.config }}
# A changed configuration starts the agents anew.
checksum/config: {{ toYaml .Values.config | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ebpf-sidecar.probe" -}}
{{- if .Values.probe -}}
{{ toYaml .Values.probe }}
{{- else -}}
httpGet: {path: /health, port: http}
{{- end }}
{{- end }}

{{- define "ebpf-sidecar.container" -}}
name: ebpf-sidecar
image: {{ include "ebpf-sidecar.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
env:
  {{- if eq .Values.mode "sidecar" }}
  - name: EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID
    valueFrom:
      fieldRef:
        fieldPath: metadata.uid
  {{- end }}
  # If it exports: a pod's name would be another one after each restart.
  - name: EBPF_SIDECAR_EXPORT_BANYANDB_NODE
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  # Attributes of the resource, if it exports by OTLP.
  - name: K8S_NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: K8S_NAMESPACE_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: K8S_POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: K8S_POD_UID
    valueFrom:
      fieldRef:
        fieldPath: metadata.uid
  {{- if ne .Values.mode "sidecar" }}
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: service.instance.id=$(K8S_NODE_NAME),host.name=$(K8S_NODE_NAME)
  {{- end }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: http
    containerPort: 8080
  - name: grpc
    containerPort: 9090
# Capabilities are given to user 0 only; it can do nothing else here.
securityContext:
  runAsUser: 0
  runAsNonRoot: false
  privileged: {{ .Values.privileged }}
  allowPrivilegeEscalation: {{ .Values.privileged }}
  readOnlyRootFilesystem: true
  {{- if not .Values.privileged }}
  capabilities:
    drop: [ALL]
    add: {{ toJson .Values.capabilities }}
  {{- end }}
  seccompProfile:
    type: {{ ternary "Unconfined" "RuntimeDefault" .Values.privileged }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
startupProbe:
  {{- include "ebpf-sidecar.probe" . | nindent 2 }}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  {{- include "ebpf-sidecar.probe" . | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 3
{{- if eq .Values.mode "daemonset" }}
# Beside a database there is none: an agent in trouble must not take it out of its Service.
readinessProbe:
  {{- include "ebpf-sidecar.probe" . | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 3
{{- end }}
volumeMounts:
  # fadvise is counted through its tracepoint where functions cannot be attached to.
  - name: tracing
    mountPath: /sys/kernel/tracing
    readOnly: true
  {{- if eq .Values.mode "sidecar" }}
  # The cgroup of this pod is found here: /sys/fs/cgroup of a container shows the container alone.
  - name: cgroup
    mountPath: /host/sys/fs/cgroup
    readOnly: true
  {{- end }}
  {{- if .Values.config }}
  - name: config
    mountPath: /etc/ebpf-sidecar
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "ebpf-sidecar.volumes" -}}
- name: tracing
  hostPath:
    path: /sys/kernel/tracing
    type: Directory
{{- if eq .Values.mode "sidecar" }}
- name: cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
{{- end }}
{{- if .Values.config }}
- name: config
  configMap:
    name: {{ include "ebpf-sidecar.fullname" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
