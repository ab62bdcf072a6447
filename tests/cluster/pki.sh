# shellcheck shell=bash
# Keys, certificates and kubeconfigs of one cluster, as kubeadm would make them; thrown away with the cluster.

make_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$1.key"; }

make_ca() {
  make_key "$1"
  openssl req -x509 -new -key "$PKI/$1.key" -sha256 -days 30 -subj "/CN=$1" -out "$PKI/$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature
}

# make_certificate NAME CA SUBJECT serverAuth|clientAuth [ALTERNATIVE-NAMES]
make_certificate() {
  make_key "$1"
  openssl req -new -key "$PKI/$1.key" -subj "$3" | openssl x509 -req -CA "$PKI/$2.crt" -CAkey "$PKI/$2.key" \
    -CAcreateserial -days 30 -sha256 -out "$PKI/$1.crt" \
    -extfile <(printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n%s' "$4" "${5:+subjectAltName=$5}")
}

# make_kubeconfig NAME SERVER-URL: for the user of the certificate NAME
make_kubeconfig() {
  cat > "$STATE/$1.kubeconfig" <<X
apiVersion: v1
kind: Config
current-context: $CLUSTER
contexts: [{name: $CLUSTER, context: {cluster: $CLUSTER, user: $1}}]
clusters: [{name: $CLUSTER, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key")}}]
X
  chmod 600 "$STATE/$1.kubeconfig"
}

make_user() { make_certificate "$1" ca "$2" clientAuth; make_kubeconfig "$1" "$3"; }

# make_pki NODES API-PORT
make_pki() {
  mkdir -p "$PKI"
  make_ca ca
  make_ca front-proxy-ca
  openssl genrsa -out "$PKI/sa.key" 2048
  openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub"
  make_certificate apiserver ca /CN=kube-apiserver serverAuth \
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1,IP:$CONTROL_V4"
  make_certificate kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
  make_certificate front-proxy front-proxy-ca /CN=front-proxy-client clientAuth
  make_user admin /O=system:masters/CN=admin "https://127.0.0.1:$2"
  make_user controllers /CN=system:kube-controller-manager https://127.0.0.1:6443
  make_user scheduler /CN=system:kube-scheduler https://127.0.0.1:6443
  make_user proxy /CN=system:kube-proxy "https://$CONTROL_V4:6443"
  local i
  for i in $(seq "$1"); do
    make_user "node-$i" "/O=system:nodes/CN=system:node:node-$i" "https://$CONTROL_V4:6443"
    make_certificate "kubelet-$i" ca "/CN=node-$i" serverAuth "DNS:node-$i,IP:$(node_v4 "$i")"
  done
}
