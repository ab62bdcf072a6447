//! Tokens of agents, as the API server and a kubelet would issue them.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, ResourceExt as _, api::PostParams};
use scopeprobe_tests::{ControlPlane, Error, Result, place};
use serde_json::json;

use crate::NAMESPACE;

/// Audience of the collector.
pub const AUDIENCE: &str = "scopeprobe-collector";
/// ServiceAccount of agents.
pub const ACCOUNT: &str = "scopeprobe-agent";

/// Returns a token of a ServiceAccount for a pod, by the API server. It lasts ten minutes, which is the shortest.
pub async fn issued(control_plane: &ControlPlane, account: &str, pod: Option<&Pod>, audience: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let bound = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    });
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: bound,
            expiration_seconds: Some(600),
        },
        ..TokenRequest::default()
    };
    let issued = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let issued = issued.map_err(Error::api("request a token"))?;
    Ok(issued.status.map(|status| status.token).unwrap_or_default())
}

/// Returns a token that expires after so many seconds, signed by the control plane's own key.
pub async fn short(control_plane: &ControlPlane, pod: &Pod, seconds: i64) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let account = accounts.get(ACCOUNT).await.map_err(Error::api("read the ServiceAccount"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).cast_signed();
    let claims = json!({
        "iss": "https://kubernetes.default.svc",
        "sub": format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}"),
        "aud": [AUDIENCE],
        "iat": now - 60, "nbf": now - 60, "exp": now + seconds,
        "kubernetes.io": {
            "namespace": NAMESPACE,
            "serviceaccount": {"name": ACCOUNT, "uid": account.uid()},
            "pod": {"name": pod.name_any(), "uid": pod.uid()},
            "node": {"name": pod.spec.as_ref().and_then(|spec| spec.node_name.clone())},
        },
    });
    let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let head = format!("{}.{}", encode(br#"{"alg":"RS256","typ":"JWT"}"#), encode(claims.to_string().as_bytes()));
    let folder = control_plane.kubeconfig().parent().unwrap_or(Path::new("/"));
    let (input, signature) = (folder.join("token-input"), folder.join("token-signature"));
    std::fs::write(&input, &head).map_err(Error::io("write a token"))?;
    let key = folder.join("accounts.key");
    let arguments = ["dgst".as_ref(), "-sha256".as_ref(), "-sign".as_ref(), key.as_os_str(), "-out".as_ref()];
    let arguments = [&arguments[..], &[signature.as_os_str(), input.as_os_str()]].concat();
    place::run(Path::new("openssl"), arguments, &[]).await?;
    let signature = std::fs::read(&signature).map_err(Error::io("read a token's signature"))?;
    Ok(format!("{head}.{}", encode(&signature)))
}

/// Makes the agents' ServiceAccount, and an agent's pod on each node. Returns the pods by node.
pub async fn agents(control_plane: &ControlPlane, nodes: &[&str]) -> Result<BTreeMap<String, Pod>> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    for name in [ACCOUNT, "other"] {
        let account =
            serde_json::from_value(json!({"metadata": {"name": name}})).map_err(|error| unexpected(&error))?;
        accounts.create(&PostParams::default(), &account).await.map_err(Error::api("make a ServiceAccount"))?;
    }
    let pods: Api<Pod> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let mut made = BTreeMap::new();
    for node in nodes {
        let pod = json!({
            "metadata": {"name": format!("agent-{node}")},
            "spec": {
                "nodeName": node, "serviceAccountName": ACCOUNT,
                "containers": [{"name": "agent", "image": "none"}],
            },
        });
        let pod = serde_json::from_value(pod).map_err(|error| unexpected(&error))?;
        let pod = pods.create(&PostParams::default(), &pod).await.map_err(Error::api("make an agent's pod"))?;
        made.insert((*node).to_owned(), pod);
    }
    Ok(made)
}

fn unexpected(error: &dyn std::error::Error) -> Error {
    Error::Unexpected(error.to_string())
}
