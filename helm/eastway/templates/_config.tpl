{{/* gateway.yaml, the same for all roles. */}}
{{- define "eastway.config" -}}
{{- $any := include "eastway.any" . -}}
apiVersion: eastway.dev/v1alpha1
kind: GatewayConfig
cluster: {{ .Values.cluster }}
kubernetes:
  namespace: {{ .Release.Namespace }}
  {{- if .Values.istio.enabled }}
  istioService: eastway-istio
  {{- end }}
  {{- with include "eastway.routes" . | fromJsonArray }}
  routes: {{ toJson . }}
  {{- end }}
trust:
  domain: {{ .Values.trustDomain }}
  cacerts: /etc/eastway/cacerts
  ca: https://eastway-ca.{{ .Release.Namespace }}.svc:15012
  token: /var/run/secrets/eastway/token
  keep: /run/eastway
  {{- with .Values.ca.leafTtl }}
  leafTtl: {{ . }}
  {{- end }}
listen:
  link: "{{ $any }}:15443"
  {{- with .Values.gateway.advertise }}
  advertise: {{- toYaml . | nindent 2 }}
  {{- end }}
  dns: ["{{ $any }}:15053"]
  local: "{{ $any }}:15012"
  {{- if .Values.istio.enabled }}
  {{- with .Values.istio.networks }}
  sni:
  {{- range . }}
  - {cluster: {{ .peer }}, network: {{ .network | default .peer }}, address: "{{ $any }}:{{ .port }}"}
  {{- end }}
  {{- end }}
  {{- end }}
  ca: "{{ $any }}:15012"
  {{- if .Values.sidecars.injection.enabled }}
  hbone: "{{ $any }}:15008"
  injection: "{{ $any }}:15017"
  {{- end }}
  metrics: "{{ $any }}:15020"
  health: "{{ $any }}:15021"
link: {{- merge (dict "drain" (printf "%ds" (int .Values.gateway.drainSeconds))) .Values.link | toYaml | nindent 2 }}
{{- with .Values.relay.allow }}
relay:
  allow: {{- toYaml . | nindent 2 }}
{{- end }}
# The others are found by the Service of the gateways.
replicas:
  listen: "{{ $any }}:15442"
registries:
- name: cluster
  kubernetes: {{ include "eastway.registry" . }}
{{- if .Values.clusterRegistry.secret }}
- name: files
  clusterRegistry: {{ merge (dict "folder" "/etc/eastway/clusters") (include "eastway.registry" . | fromJson) | toJson }}
{{- end }}
{{- with .Values.clusterRegistry.namespace }}
- name: objects
  clusterRegistry: {{ merge (dict "namespace" .) (include "eastway.registry" $ | fromJson) | toJson }}
{{- end }}
{{- with .Values.sidecars }}
{{- if .injection.enabled }}
sidecars:
  gateway: eastway-gateway-local.{{ $.Release.Namespace }}.svc:15008
  injection:
    image: {{ include "eastway.imageOf" (list $ .image) }}
    pullPolicy: {{ .image.pullPolicy }}
    {{- with .injection.ranges }}
    ranges: {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .resources }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}
{{- end }}
peers: /etc/eastway/peers
policies: /etc/eastway/policies
{{- if or .Values.dns.zones .Values.dns.names }}
dns:
  {{- with .Values.dns.zones }}
  zones: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .Values.dns.names }}
  names: {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
authorization: {{ .Values.authorization }}
state: /var/lib/eastway
log: {{- toYaml .Values.log | nindent 2 }}
{{- with .Values.limits }}
limits: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "eastway.routes" -}}
{{- $words := list -}}
{{- if .Values.routes.gatewayApi }}{{ $words = append $words "gatewayApi" }}{{ end -}}
{{- if .Values.routes.istio }}{{ $words = append $words "istio" }}{{ end -}}
{{ toJson $words }}
{{- end }}

{{- define "eastway.registry" -}}
{{- $marks := list -}}
{{- if .Values.exportMarks.istio }}{{ $marks = append $marks "istio" }}{{ end -}}
{{- if .Values.exportMarks.linkerd }}{{ $marks = append $marks "linkerd" }}{{ end -}}
{{- if .Values.exportMarks.cilium }}{{ $marks = append $marks "cilium" }}{{ end -}}
{{- $registry := dict -}}
{{- with $marks }}{{ $_ := set $registry "exportMarks" . }}{{ end -}}
{{- with .Values.subsetLabels }}{{ $_ := set $registry "subsetLabels" . }}{{ end -}}
{{ toJson $registry }}
{{- end }}
