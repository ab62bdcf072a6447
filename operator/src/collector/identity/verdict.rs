//! Judges the API server's review of a token. Pure.

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::agent::Refusal;
use crate::settings::COLLECTOR_AUDIENCE as AUDIENCE;

/// Extra fields of a ServiceAccount's user (Kubernetes, `serviceaccount` package).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30; behind a feature gate before.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Pod of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundPod {
    pub name: String,
    pub uid: String,
    /// Its node, where the API server names it.
    pub node: Option<String>,
}

/// Returns the pod of a token of this ServiceAccount.
pub(super) fn judge(status: &TokenReviewStatus, account: &str) -> Result<BoundPod, Refusal> {
    if status.authenticated != Some(true) {
        let error = status.error.clone().filter(|error| !error.is_empty());
        return Err(Refusal::NotAuthenticated(error.unwrap_or_else(|| "without a reason".to_owned())));
    }
    // An API server that ignores audiences names none.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(Refusal::OtherAudience { found: audiences.to_vec() });
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    if name != account {
        return Err(Refusal::OtherAccount { found: name.to_owned(), expected: account.to_owned() });
    }
    let extra = |key| user.and_then(|user| single(user, key));
    match (extra(POD_NAME), extra(POD_UID)) {
        (Some(name), Some(uid)) => Ok(BoundPod { name, uid, node: extra(NODE_NAME) }),
        _ => Err(Refusal::NotBound),
    }
}

fn single(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:system:agent";

    type Change = fn(&mut Value);

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {"username": ACCOUNT, "extra": {POD_NAME: ["a"], POD_UID: ["u"], NODE_NAME: ["node-1"]}},
        })
    }

    fn verdict(status: Value) -> Result<BoundPod, Refusal> {
        judge(&serde_json::from_value(status).unwrap(), ACCOUNT)
    }

    #[test]
    fn token_names_its_pod_and_from_kubernetes_1_30_its_node() {
        let bound = verdict(good()).unwrap();
        assert_eq!((bound.name.as_str(), bound.uid.as_str(), bound.node.as_deref()), ("a", "u", Some("node-1")));
        let mut older = good();
        older["user"]["extra"].as_object_mut().unwrap().remove(NODE_NAME);
        assert_eq!(verdict(older).unwrap().node, None);
    }

    #[test]
    fn what_is_no_agents_token_is_refused() {
        assert!(matches!(verdict(json!({})), Err(Refusal::NotAuthenticated(_))));
        let expired = json!({"authenticated": false, "error": "token has expired"});
        assert_eq!(verdict(expired).unwrap_err(), Refusal::NotAuthenticated("token has expired".to_owned()));
        let changes: [(Change, &str); 5] = [
            (|status| status["audiences"] = Value::Null, "audience"),
            (|status| status["audiences"] = json!(["https://kubernetes.default.svc"]), "audience"),
            (|status| status["user"]["username"] = json!("system:serviceaccount:other:agent"), "other:agent"),
            (|status| status["user"]["extra"] = Value::Null, "not bound to a pod"),
            (|status| status["user"]["extra"][POD_UID] = json!(["u", "v"]), "not bound to a pod"),
        ];
        for (change, expected) in changes {
            let mut status = good();
            change(&mut status);
            let refusal = verdict(status).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }
}
