# shellcheck shell=bash
# etcd, kube-apiserver, kube-controller-manager and kube-scheduler, all in the control plane's network namespace.

k() { "$BIN/kubectl" --kubeconfig "$STATE/admin.kubeconfig" "$@"; }
start_control() { local name=$1; shift; start "$name" nsenter --net="/run/netns/$CONTROL_NS" -- "$@"; }

# Who wrote what, at level Metadata: the tests count writes with it. Of ScopeProbe's own accounts also what they read: a
# test compares it with their rights.
write_audit_policy() {
  cat > "$STATE/audit-policy.yaml" <<X
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts:scopeprobe-system']}
- {level: None, verbs: [get, list, watch]}
- {level: Metadata}
X
}

start_apiserver() {
  # shellcheck disable=SC2054 # commas are parts of values
  local flags=(
    --etcd-servers=http://127.0.0.1:2379
    --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$CONTROL_V4"
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt"
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
    --service-account-issuer=https://kubernetes.default.svc
    --service-account-signing-key-file="$PKI/sa.key" --service-account-key-file="$PKI/sa.pub"
    --service-cluster-ip-range="$SERVICES_V4,$SERVICES_V6"
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key"
    --requestheader-client-ca-file="$PKI/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group
    --requestheader-extra-headers-prefix=X-Remote-Extra-
    --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key"
    --audit-policy-file="$STATE/audit-policy.yaml" --audit-log-path="$STATE/audit.log" --audit-log-maxsize=4096
  )
  # shellcheck disable=SC2086 # several flags in one variable
  start_control kube-apiserver "$BIN/kube-apiserver" "${flags[@]}" ${APISERVER_ARGS-}
}

start_control_plane() {
  local port=$1
  write_audit_policy
  # A test's data need not survive the machine: no fsync.
  start_control etcd "$BIN/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn
  start_apiserver
  start api-on-loopback socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" \
    "EXEC:nsenter --net=/run/netns/$CONTROL_NS -- socat STDIO TCP\:127.0.0.1\:6443"
  await 120 "the API server" k get --raw /readyz
  # shellcheck disable=SC2086
  start_control kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig="$STATE/controllers.kubeconfig" \
    --leader-elect=false --use-service-account-credentials=true --service-account-private-key-file="$PKI/sa.key" \
    --root-ca-file="$PKI/ca.crt" --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --kube-api-qps=200 --kube-api-burst=400 --controllers='*,-node-ipam-controller' ${CONTROLLERS_ARGS-}
  start_control kube-scheduler "$BIN/kube-scheduler" --kubeconfig="$STATE/scheduler.kubeconfig" --leader-elect=false
  await 60 "the default service account" k get serviceaccount default
}
