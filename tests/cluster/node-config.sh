# shellcheck shell=bash
# The configuration files of a node's programs.

# write_node_config I DIR
write_node_config() {
  write_cni_config "$1"
  write_containerd_config "$2"
  write_kubelet_config "$1" "$2"
  write_kube_proxy_config "$1" "$2"
}

# POD_ADDRESSES: so many addresses of each family are all that a node has for its pods.
write_cni_config() {
  local v4 v6
  v4=$(pods_v4 "$1") v6=$(pods_v6 "$1")
  local last_v4='' last_v6=''
  if [ -n "${POD_ADDRESSES-}" ]; then
    last_v4=", \"rangeEnd\": \"${v4%0/*}$((POD_ADDRESSES + 1))\""
    last_v6=", \"rangeEnd\": \"${v6%/*}$(printf %x $((POD_ADDRESSES + 1)))\""
  fi
  cat > /etc/cni/net.d/10-scopeprobe.conflist <<X
{"cniVersion": "1.0.0", "name": "scopeprobe", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$v4"$last_v4}], [{"subnet": "$v6"$last_v6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
X
}

# oom_score and restrict_oom_score_adj: a container without CAP_SYS_RESOURCE may not lower its OOM score.
write_containerd_config() {
  cat > "$1/containerd.toml" <<X
version = 3
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/$PAUSE_IMAGE"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
X
}

write_kubelet_config() {
  : > "$2/resolv.conf"
  cat > "$2/kubelet.yaml" <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_v4 "$1")
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet-$1.crt
tlsPrivateKeyFile: $PKI/kubelet-$1.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: true
resolvConf: $2/resolv.conf
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {memory.available: "50Mi", nodefs.available: "200Mi", imagefs.available: "200Mi", nodefs.inodesFree: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
X
}

# conntrack 0: leave the machine's limits alone.
write_kube_proxy_config() {
  cat > "$2/kube-proxy.yaml" <<X
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
clusterCIDR: $PODS_V4,$PODS_V6
mode: $PROXY_MODE
hostnameOverride: node-$1
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
X
}
