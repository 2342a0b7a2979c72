#!/bin/bash
# Commands for the running test bed. Written by `make bed` for the bed that runs now.
set -euo pipefail
folder=@folder@ stage=@stage@
declare -A holders=(@holders@)
pid=$(cat "$folder/pid")

usage() {
    cat <<END
bed enter wan|CLUSTER COMMAND...      run a command on the WAN or on a cluster's node (network and mounts)
bed kubectl CLUSTER ARGS...           kubectl as the administrator
bed load TAR...                       make docker-archive images known to every cluster
bed eastway BINARY                    make an image eastway:e2e of this binary and load it
bed conformance ARGS...               run the MCS suite (start the bed with --distinct-pods; -ginkgo.focus=… for some specs)
bed balancer CLUSTER NS/SERVICE IP    give a LoadBalancer Service an address of 198.51.100.0/24
END
}

on_stage() {
    nsenter --mount="/proc/$pid/ns/mnt" --net="/proc/$pid/ns/net" --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

enter() {
    local where=$1
    shift
    if [ "$where" = wan ]; then on_stage "$@"; return; fi
    on_stage nsenter --target "${holders[$where]}" --mount --net -- "$@"
}

load() {
    local cluster tar
    for cluster in "${!holders[@]}"; do
        for tar in "$@"; do
            on_stage ctr --address "$stage/$cluster/containerd.sock" --namespace k8s.io images import "$(realpath "$tar")"
        done
    done
}

command=${1:-help}
shift || true
case $command in
enter) enter "$@" ;;
kubectl)
    cluster=$1
    shift
    KUBECONFIG=$folder/$cluster.kubeconfig @kubectl@ "$@"
    ;;
load) load "$@" ;;
eastway)
    @program@ --image-of "$1" --to "$folder/eastway.tar"
    load "$folder/eastway.tar"
    ;;
conformance)
    @program@ --conformance-images-to "$folder/conformance"
    load "$folder/conformance/socat.tar"
    contexts=$(printf '%s\n' "${!holders[@]}" | sort | paste -sd,)
    # A change of the mount namespace is one of the working folder too.
    on_stage env --chdir="$folder/conformance" @suite@ -kubeconfig "$folder/all.wan.kubeconfig" -contexts "$contexts" -ginkgo.v -ginkgo.no-color \
        -ginkgo.json-report=report.json "$@"
    ;;
balancer)
    enter "$1" ip addr replace "$3/32" dev eth0
    KUBECONFIG=$folder/$1.kubeconfig @kubectl@ patch service "${2#*/}" -n "${2%%/*}" --subresource=status --type=merge \
        -p "{\"status\":{\"loadBalancer\":{\"ingress\":[{\"ip\":\"$3\"}]}}}"
    ;;
*) usage ;;
esac
