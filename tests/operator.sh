#!/usr/bin/env bash
# An MCPServer as its operator meets it, by kubectl alone: run it, look at it, change it, scale it,
# remove it. It is the agent, beside this script, that does the work.
#
#   operator.sh NAMESPACE NAME TRANSPORT        (KUBECONFIG says which cluster)
set -euo pipefail
namespace=$1 name=$2 transport=$3
patience=--timeout=120s

k() { kubectl --namespace "$namespace" "$@"; }
field() { k get "$1" -o "jsonpath={$2}"; }
is() { # WHAT WANTED GOT
  [[ $2 == "$3" ]] || { echo "error: $1 is '$3', not '$2'" >&2; exit 1; }
  echo "$1: $3"
}
replicas() { # COUNT: of the server, its Deployment, and the pods that are ready
  k wait "mcpserver/$name" --for="jsonpath={.status.readyReplicas}=$1" "$patience"
  k wait "mcpserver/$name" --for=condition=Ready "$patience"
  is "replicas of the Deployment" "$1" "$(field "deployment/$name" .spec.replicas)"
  is "phase" Ready "$(field "mcpserver/$name" .status.phase)"
}

count=2
[[ $transport == stdio ]] && count=1 # one child process on one stdin

k apply -f - <<MANIFEST
apiVersion: mcp.example.com/v1alpha1
kind: MCPServer
metadata:
  name: $name
spec:
  image: registry.example.com/mcp/$name:1.0
  transport: $transport
  replicas: $count
  config:
    LOG_LEVEL: info
  drain:
    timeout: 2s
    preStop: 2s
MANIFEST
k wait "mcpserver/$name" --for=condition=Ready "$patience"
replicas "$count"

case $transport in
  stdio) endpoint=stdio://$name.$namespace.svc.cluster.local ;;
  *) endpoint=http://$name.$namespace.svc.cluster.local:8080/mcp ;;
esac
is endpoint "$endpoint" "$(field "mcpserver/$name" .status.endpoint)"
is "config" info "$(field "deployment/$name" \
  '.spec.template.spec.containers[0].env[?(@.name=="LOG_LEVEL")].value')"
k get mcps
k describe "mcpserver/$name" | grep -q MCPServerReady

if [[ $transport == stdio ]]; then
  if k patch "mcpserver/$name" --type=merge -p '{"spec":{"replicas":3}}'; then
    echo "error: three replicas of a stdio server were accepted" >&2
    exit 1
  fi
  scaled=0
else
  k patch "mcpserver/$name" --type=merge -p '{"spec":{"replicas":3}}'
  replicas 3
  scaled=1
fi

k patch "mcpserver/$name" --type=merge -p '{"spec":{"config":{"LOG_LEVEL":"debug"}}}'
k wait "deployment/$name" "$patience" --for='jsonpath={.spec.template.spec.containers[0].env[?(@.name=="LOG_LEVEL")].value}=debug'
k wait "mcpserver/$name" --for=condition=Ready "$patience"

k scale "mcpserver/$name" --replicas="$scaled"
k wait "deployment/$name" --for="jsonpath={.spec.replicas}=$scaled" "$patience"
k wait "mcpserver/$name" --for=condition=Ready "$patience"
k scale "mcpserver/$name" --replicas="$count"
replicas "$count"

k delete "mcpserver/$name" --wait=false
k wait "mcpserver/$name" --for='jsonpath={.status.phase}=Terminating' "$patience"
k wait "mcpserver/$name" --for='jsonpath={.status.shutdown.deadline}' "$patience"
deadline=$(field "mcpserver/$name" .status.shutdown.deadline)
k wait "mcpserver/$name" --for=delete "$patience"
(($(date +%s) <= $(date -d "$deadline" +%s))) || { echo "error: gone after $deadline" >&2; exit 1; }
is "what is left" "" "$(k get deployments,services,pods -o name \
  -l "app.kubernetes.io/instance=$name")"
echo "$name is gone, before $deadline"
