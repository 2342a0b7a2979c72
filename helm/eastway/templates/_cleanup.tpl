{{/* A Job that removes what the controller made: root, name, hook, args. */}}
{{- define "eastway.cleanupJob" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "eastway.labels" (list .root "cleanup") | nindent 4 }}
  annotations: {{- merge (dict "helm.sh/hook-weight" "0") .hook | toYaml | nindent 4 }}
spec:
  backoffLimit: 3
  activeDeadlineSeconds: 240
  template:
    metadata:
      labels: {{- include "eastway.labels" (list .root "cleanup") | nindent 8 }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      restartPolicy: Never
      securityContext: {{- include "eastway.podSecurity" .root | nindent 8 }}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 6 }}
      {{- end }}
      containers:
      - name: cleanup
        image: {{ include "eastway.image" .root }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        args: {{ toJson .args }}
        securityContext: {{- include "eastway.containerSecurity" .root | nindent 10 }}
        {{- with .root.Values.controller.resources }}
        resources: {{- toYaml . | nindent 10 }}
        {{- end }}
      {{- with .root.Values.controller.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.controller.tolerations }}
      tolerations: {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
