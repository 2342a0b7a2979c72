{{/* Labels of everything. Use: include "eastway.labels" (list . "gateway") */}}
{{- define "eastway.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: eastway
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: eastway
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* Labels that select the pods of one role; they never change. The controller finds gateways by them. */}}
{{- define "eastway.selector" -}}
app.kubernetes.io/name: eastway
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "eastway.image" -}}
{{ include "eastway.imageOf" (list . .Values.image) }}
{{- end }}

{{/* Name of an image. Use: include "eastway.imageOf" (list . .Values.sidecars.image) */}}
{{- define "eastway.imageOf" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What cannot be installed is said before anything is. */}}
{{- define "eastway.validate" -}}
{{- if ne .Release.Namespace "eastway-system" -}}
{{- fail "\n\nThe namespace is part of the gateway's identity, and is eastway-system:\n  helm install eastway … --namespace eastway-system --create-namespace\n" -}}
{{- end -}}
{{- if and .Values.sidecars.injection.enabled (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail "\n\nsidecars.injection.enabled wants Kubernetes 1.29: sidecars are containers that start before the others of a pod and end after them\n" -}}
{{- end -}}
{{- if and .Values.ipv6 .Values.dns.clusterIP (not (contains ":" .Values.dns.clusterIP)) (eq (toString .Values.gateway.service.ipFamilyPolicy) "SingleStack") (eq (join "," .Values.gateway.service.ipFamilies) "IPv6") -}}
{{- fail "\n\ndns.clusterIP is an IPv4 address, and gateway.service.ipFamilies is IPv6 alone: give an IPv6 address of the service range\n" -}}
{{- end -}}
{{- end }}

{{/* An address that listens on all interfaces of a pod. */}}
{{- define "eastway.any" -}}
{{- if .Values.ipv6 }}[::]{{ else }}0.0.0.0{{ end -}}
{{- end }}

{{/* What the restricted Pod Security Standard wants. */}}
{{- define "eastway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "eastway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Health, the same for all roles. */}}
{{- define "eastway.probes" -}}
startupProbe:
  httpGet: {path: /healthz/live, port: health}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz/live, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /healthz/ready, port: health}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* Where pods of a role are placed. Use: include "eastway.placement" (list "gateway" .Values.gateway) */}}
{{- define "eastway.placement" -}}
{{- $role := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.topologySpread }}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "eastway.selector" $role | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{/* A token that the ca role takes, and what its certificate is checked against; never the key. */}}
{{- define "eastway.caVolumes" -}}
- name: ca-token
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken:
        path: token
        audience: eastway-ca
        expirationSeconds: 3600
- name: trust
  secret:
    secretName: {{ .Values.ca.secretName }}
    defaultMode: 0440
    # The other CA while the key is rotated; what is not there is left out.
    optional: true
    items:
    - {key: root-cert.pem, path: root-cert.pem}
    - {key: cert-chain.pem, path: cert-chain.pem}
    - {key: next-root-cert.pem, path: next/root-cert.pem}
    - {key: next-cert-chain.pem, path: next/cert-chain.pem}
    - {key: previous-root-cert.pem, path: previous/root-cert.pem}
    - {key: previous-cert-chain.pem, path: previous/cert-chain.pem}
{{- end }}

{{- define "eastway.caMounts" -}}
- {name: ca-token, mountPath: /var/run/secrets/eastway, readOnly: true}
- {name: trust, mountPath: /etc/eastway/cacerts, readOnly: true}
{{- end }}

{{/* Peers and policies as folders. */}}
{{- define "eastway.configVolumes" -}}
- name: config
  configMap:
    name: eastway-config
- name: peers
  projected:
    sources:
    - configMap: {name: eastway-peers}
    {{- with .Values.existingPeers.configMap }}
    - configMap: {name: {{ . }}}
    {{- end }}
    {{- with .Values.existingPeers.secret }}
    - secret: {name: {{ . }}}
    {{- end }}
- name: policies
  configMap:
    name: eastway-policies
{{- end }}

{{- define "eastway.configMounts" -}}
- {name: config, mountPath: /etc/eastway/config, readOnly: true}
- {name: peers, mountPath: /etc/eastway/peers, readOnly: true}
- {name: policies, mountPath: /etc/eastway/policies, readOnly: true}
{{- end }}

{{/* Cluster files and kubeconfigs, for those who read API servers. The Secret may come later. */}}
{{- define "eastway.clusterVolumes" -}}
{{- with .Values.clusterRegistry.secret }}
- name: clusters
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    optional: true
{{- end }}
{{- end }}

{{- define "eastway.clusterMounts" -}}
{{- if .Values.clusterRegistry.secret }}
- {name: clusters, mountPath: /etc/eastway/clusters, readOnly: true}
{{- end }}
{{- end }}

{{/* Whether the cluster has a kind that is installed by others. Use: (list . "auto" "monitoring.coreos.com/v1/PodMonitor") */}}
{{- define "eastway.wanted" -}}
{{- $root := index . 0 -}}
{{- $word := index . 1 -}}
{{- if or (eq $word "always") (and (eq $word "auto") ($root.Capabilities.APIVersions.Has (index . 2))) -}}yes{{- end -}}
{{- end }}

{{/* What gateway and controller read. */}}
{{- define "eastway.readRules" -}}
- apiGroups: [""]
  resources: [services, namespaces, pods]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [multicluster.x-k8s.io]
  resources: [serviceexports]
  verbs: [list, watch]
- apiGroups: [eastway.dev]
  resources: [peers, trafficpolicies, accesspolicies, visibilities, serviceshares]
  verbs: [list, watch]
{{- if .Values.routes.gatewayApi }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes, tcproutes, tlsroutes]
  verbs: [list, watch]
{{- end }}
{{- if .Values.routes.istio }}
- apiGroups: [networking.istio.io]
  resources: [virtualservices, destinationrules]
  verbs: [list, watch]
{{- end }}
{{- end }}
