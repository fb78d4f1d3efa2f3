{{- define "tsp.labels" -}}
app.kubernetes.io/part-of: tsp
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Labels that select: `include "tsp.selector" (list . "proxy")`. */}}
{{- define "tsp.selector" -}}
app.kubernetes.io/name: tsp-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "tsp.pod-security" -}}
runAsNonRoot: true
runAsUser: {{ .uid }}
runAsGroup: {{ .uid }}
fsGroup: {{ .uid }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}

{{- define "tsp.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "tsp.resources" -}}
requests: { cpu: {{ .cpu | quote }}, memory: {{ .memory }} }
limits: { cpu: {{ .cpu | quote }}, memory: {{ .memory }} }
{{- end }}

{{- define "tsp.env" -}}
{{- range $name, $value := . }}
- { name: {{ $name }}, value: {{ $value | quote }} }
{{- end }}
{{- end }}

{{- define "tsp.pod" -}}
metadata:
  labels:
    {{- include "tsp.selector" (list . "proxy") | nindent 4 }}
    {{- include "tsp.labels" . | nindent 4 }}
  annotations:
    prometheus.io/scrape: "true"
    # The health port, which stays in the clear when the API speaks TLS.
    prometheus.io/port: "9000"
    {{- with .Values.proxy.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ .Release.Name }}-proxy
  automountServiceAccountToken: false
  enableServiceLinks: false
  # The pause, a drain of 20 s and 6 s at most; where there is a logdriver, its drain of 20 s after that.
  terminationGracePeriodSeconds: {{ add .Values.proxy.preStopSeconds (ternary 55 35 .Values.logdriver.enabled) }}
  securityContext:
    {{- include "tsp.pod-security" (dict "uid" .Values.proxy.uid) | nindent 4 }}
    seccompProfile:
      type: {{ .Values.proxy.seccomp }}
      {{- if eq .Values.proxy.seccomp "Localhost" }}
      localhostProfile: {{ .Values.proxy.seccompLocalhostProfile }}
      {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "tsp.selector" (list . "proxy") | nindent 10 }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: DoNotSchedule
      labelSelector:
        matchLabels:
          {{- include "tsp.selector" (list . "proxy") | nindent 10 }}
  {{- with .Values.proxy.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.proxy.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.logdriver.enabled }}
  # Starts before the proxy and is stopped when that has ended: it takes the last events too.
  initContainers:
    - name: logdriver
      restartPolicy: Always
      image: {{ .Values.logdriver.image }}
      imagePullPolicy: {{ .Values.proxy.imagePullPolicy }}
      envFrom:
        - secretRef: { name: {{ .Values.logdriver.secret }} }
      env:
        - { name: LOGDRIVER_EVENT_PRODUCER_URL, value: "tcp://127.0.0.1:5555" }
        {{- include "tsp.env" .Values.logdriver.env | nindent 8 }}
      ports:
        - { name: ld-health, containerPort: 9001 }
      resources:
        {{- include "tsp.resources" .Values.logdriver.resources | nindent 8 }}
      livenessProbe:
        httpGet: { path: /live, port: ld-health }
        periodSeconds: 10
        timeoutSeconds: 3
      readinessProbe:
        # That a log system is slow is no reason to take the proxy away from its clients.
        httpGet: { path: /live, port: ld-health }
        periodSeconds: 10
        timeoutSeconds: 3
      securityContext:
        {{- include "tsp.container-security" . | nindent 8 }}
      volumeMounts:
        - { name: logdriver, mountPath: /logdriver }
  {{- end }}
  containers:
    - name: tsp
      image: {{ .Values.proxy.image }}
      imagePullPolicy: {{ .Values.proxy.imagePullPolicy }}
      envFrom:
        - secretRef: { name: {{ .Values.proxy.secret }} }
      env:
        - { name: RUST_LOG, value: "info,tsp::ops=warn" }
        - { name: TSP_ENABLE_LOGDRIVER_INTEGRATION, value: {{ .Values.logdriver.enabled | quote }} }
        {{- if .Values.logdriver.enabled }}
        # Its one reader is in the same pod.
        - { name: TSP_EVENT_BIND_ADDRESS, value: "127.0.0.1:5555" }
        {{- end }}
        {{- if .Values.proxy.tlsSecret }}
        - { name: TSP_TLS_CERTIFICATE, value: /tls/tls.crt }
        - { name: TSP_TLS_KEY, value: /tls/tls.key }
        {{- end }}
        {{- include "tsp.env" .Values.proxy.env | nindent 8 }}
      ports:
        - { name: http, containerPort: 7777 }
        - { name: health, containerPort: 9000 }
      resources:
        {{- include "tsp.resources" .Values.proxy.resources | nindent 8 }}
      livenessProbe:
        httpGet: { path: /live, port: health }
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 3
      readinessProbe:
        httpGet: { path: /ready, port: health }
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 1
      lifecycle:
        preStop: { sleep: { seconds: {{ .Values.proxy.preStopSeconds }} } }
      securityContext:
        {{- include "tsp.container-security" . | nindent 8 }}
      {{- if .Values.proxy.tlsSecret }}
      volumeMounts:
        - { name: tls, mountPath: /tls, readOnly: true }
      {{- end }}
  {{- if .Values.proxy.tlsSecret }}
  volumes:
    - name: tls
      secret: { secretName: {{ .Values.proxy.tlsSecret }}, defaultMode: 0440 }
  {{- end }}
{{- end }}
