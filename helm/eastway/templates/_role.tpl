{{/* Deployment, service account and budget of a role without a WAN side. Use: (dict "root" . "role" "controller" "values" .Values.controller) */}}
{{- define "eastway.role" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $values := .values -}}
{{- $isCa := eq $role "ca" -}}
{{- $isInjector := eq $role "injector" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: eastway-{{ $role }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "eastway.labels" (list $root $role) | nindent 4 }}
  {{- with $root.Values.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: eastway-{{ $role }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "eastway.labels" (list $root $role) | nindent 4 }}
spec:
  replicas: {{ $values.replicas }}
  revisionHistoryLimit: 3
  selector:
    matchLabels: {{- include "eastway.selector" $role | nindent 6 }}
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  template:
    metadata:
      labels:
        {{- with $values.podLabels }}{{ toYaml . | nindent 8 }}{{ end }}
        {{- include "eastway.labels" (list $root $role) | nindent 8 }}
      annotations:
        checksum/config: {{ include "eastway.config" $root | sha256sum }}
        {{- with $values.podAnnotations }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      serviceAccountName: eastway-{{ $role }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      terminationGracePeriodSeconds: 15
      securityContext: {{- include "eastway.podSecurity" $root | nindent 8 }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 6 }}
      {{- end }}
      containers:
      - name: {{ $role }}
        image: {{ include "eastway.image" $root }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        args: [{{ $role }}, --config, /etc/eastway/config/gateway.yaml]
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        ports:
        {{- if $isCa }}
        - {name: ca, containerPort: 15012, protocol: TCP}
        {{- end }}
        {{- if $isInjector }}
        - {name: webhook, containerPort: 15017, protocol: TCP}
        {{- end }}
        - {name: metrics, containerPort: 15020, protocol: TCP}
        - {name: health, containerPort: 15021, protocol: TCP}
        {{- include "eastway.probes" $root | nindent 8 }}
        securityContext: {{- include "eastway.containerSecurity" $root | nindent 10 }}
        {{- with $values.resources }}
        resources: {{- toYaml . | nindent 10 }}
        {{- end }}
        volumeMounts:
        {{- include "eastway.configMounts" $root | nindent 8 }}
        {{- if $isCa }}
        - {name: cacerts, mountPath: /etc/eastway/cacerts, readOnly: true}
        {{- else if not $isInjector }}
        {{- include "eastway.caMounts" $root | nindent 8 }}
        {{- with include "eastway.clusterMounts" $root }}{{ trim . | nindent 8 }}{{ end }}
        {{- end }}
        - {name: state, mountPath: /var/lib/eastway}
      {{- include "eastway.placement" (list $role $values) | nindent 6 }}
      volumes:
      {{- include "eastway.configVolumes" $root | nindent 6 }}
      {{- if $isCa }}
      - name: cacerts
        secret:
          secretName: {{ $root.Values.ca.secretName }}
          defaultMode: 0440
          # Its layout depends on who made it; while the key is rotated the other CA is a folder of its own.
          optional: true
          items:
          {{- range list "ca-cert.pem" "ca-key.pem" "cert-chain.pem" "root-cert.pem" "tls.crt" "tls.key" "ca.crt" }}
          - {key: {{ . }}, path: {{ . }}}
          {{- end }}
          {{- range $file := list "ca-cert.pem" "ca-key.pem" "cert-chain.pem" "root-cert.pem" }}
          - {key: next-{{ $file }}, path: next/{{ $file }}}
          - {key: previous-{{ $file }}, path: previous/{{ $file }}}
          {{- end }}
          - {key: previous-activated, path: previous/activated}
          - {key: revoked.txt, path: revoked.txt}
      {{- else if not $isInjector }}
      {{- include "eastway.caVolumes" $root | nindent 6 }}
      {{- with include "eastway.clusterVolumes" $root }}{{ trim . | nindent 6 }}{{ end }}
      {{- end }}
      - name: state
        emptyDir: {}
{{- if gt (int $values.replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: eastway-{{ $role }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "eastway.labels" (list $root $role) | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "eastway.selector" $role | nindent 6 }}
{{- end }}
{{- end }}
