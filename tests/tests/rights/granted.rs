//! The rights that manifests grant to ServiceAccounts, and those of them that requests have needed.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use scopeprobe_tests::{Error, Result, audit::Request};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_yaml::Value;

/// One right of a rule: a rule of two verbs and two resources grants four.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// User of the ServiceAccount.
    user: String,
    /// Namespace in which it holds; `None`: everywhere.
    namespace: Option<String>,
    group: String,
    /// With its subresource: `nodes/status`.
    resource: String,
    verb: String,
    /// `None`: any name.
    name: Option<String>,
}

impl Right {
    fn allows(&self, request: &Request, verb: &str) -> bool {
        let resource = match request.subresource.as_str() {
            "" => request.resource.clone(),
            subresource => format!("{}/{subresource}", request.resource),
        };
        self.user == request.user
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == request.namespace)
            && self.group == request.group
            && self.resource == resource
            && self.verb == verb
            && self.name.as_ref().is_none_or(|name| *name == request.name)
    }
}

/// Returns the verbs that a request needed. A patch that creates its object needs two.
fn verbs(request: &Request) -> Vec<&str> {
    let creates = request.verb == "patch" && request.code == 201;
    [request.verb.as_str()].into_iter().chain(creates.then_some("create")).collect()
}

/// Returns the rights without which all of these requests would have been allowed.
pub fn unneeded(rights: &[Right], requests: &[Request]) -> Vec<Right> {
    let needed: Vec<&Right> = requests
        .iter()
        .flat_map(|request| verbs(request).into_iter().map(move |verb| (request, verb)))
        .filter_map(|(request, verb)| {
            let mut allowing = rights.iter().filter(|right| right.allows(request, verb));
            allowing.next().filter(|_| allowing.next().is_none())
        })
        .collect();
    rights.iter().filter(|right| !needed.contains(right)).cloned().collect()
}

/// Returns the rights of the bound roles of a text.
///
/// # Errors
/// Returns an error if the text is no YAML, or has a rule that this function does not know.
pub fn of(yaml: &str) -> Result<Vec<Right>> {
    let read = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize).collect::<Result<Vec<_>, _>>();
    let objects = read.map_err(|error| Error::Unexpected(format!("no YAML: {error}")))?;
    let mut rules: BTreeMap<(&str, String), Vec<PolicyRule>> = BTreeMap::new();
    for role in objects_of::<ClusterRole>(&objects, "ClusterRole")? {
        rules.insert(("ClusterRole", role.metadata.name.unwrap_or_default()), role.rules.unwrap_or_default());
    }
    for role in objects_of::<Role>(&objects, "Role")? {
        let namespace = role.metadata.namespace.unwrap_or_default();
        let name = format!("{namespace}/{}", role.metadata.name.unwrap_or_default());
        rules.insert(("Role", name), role.rules.unwrap_or_default());
    }
    let mut rights = Vec::new();
    for binding in objects_of::<ClusterRoleBinding>(&objects, "ClusterRoleBinding")? {
        let bound = bound(&rules, &binding.role_ref, None)?;
        rights.extend(granted(binding.subjects.as_deref().unwrap_or_default(), None, bound));
    }
    for binding in objects_of::<RoleBinding>(&objects, "RoleBinding")? {
        let namespace = binding.metadata.namespace.unwrap_or_default();
        let bound = bound(&rules, &binding.role_ref, Some(&namespace))?;
        rights.extend(granted(binding.subjects.as_deref().unwrap_or_default(), Some(&namespace), bound));
    }
    rights.sort();
    Ok(rights)
}

fn objects_of<K: DeserializeOwned>(objects: &[Value], kind: &str) -> Result<Vec<K>> {
    let of_kind = objects.iter().filter(|object| object.get("kind").and_then(Value::as_str) == Some(kind));
    let read = of_kind.map(|object| serde_yaml::from_value(object.clone())).collect::<Result<Vec<_>, _>>();
    read.map_err(|error| Error::Unexpected(format!("cannot read a {kind}: {error}")))
}

fn bound<'a>(
    rules: &'a BTreeMap<(&str, String), Vec<PolicyRule>>,
    role: &RoleRef,
    namespace: Option<&str>,
) -> Result<&'a [PolicyRule]> {
    let name = match (role.kind.as_str(), namespace) {
        ("Role", Some(namespace)) => format!("{namespace}/{}", role.name),
        _ => role.name.clone(),
    };
    let found = rules.iter().find(|((kind, known), _)| *kind == role.kind && *known == name);
    let found = found.ok_or_else(|| Error::Unexpected(format!("there is no {} {name}", role.kind)))?.1;
    let is_plain = |rule: &PolicyRule| {
        let words = [rule.api_groups.as_ref(), rule.resources.as_ref(), Some(&rule.verbs)];
        let is_named = |words: &Vec<String>| !words.is_empty() && !words.iter().any(|word| word.contains('*'));
        rule.non_resource_urls.is_none() && words.into_iter().all(|words| words.is_some_and(is_named))
    };
    if found.iter().all(is_plain) {
        return Ok(found);
    }
    Err(Error::Unexpected(format!("{name} grants more than named verbs of resources: {found:?}")))
}

fn granted(subjects: &[Subject], namespace: Option<&str>, rules: &[PolicyRule]) -> Vec<Right> {
    let mut rights = Vec::new();
    for rule in rules {
        let names: Vec<Option<String>> = match rule.resource_names.as_deref() {
            None | Some([]) => vec![None],
            Some(names) => names.iter().cloned().map(Some).collect(),
        };
        for subject in subjects {
            let user =
                format!("system:serviceaccount:{}:{}", subject.namespace.as_deref().unwrap_or_default(), subject.name);
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for verb in &rule.verbs {
                        rights.extend(names.iter().map(|name| Right {
                            user: user.clone(),
                            namespace: namespace.map(str::to_owned),
                            group: group.clone(),
                            resource: resource.clone(),
                            verb: verb.clone(),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    rights
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "
{kind: ClusterRole, metadata: {name: wide}, rules: [{apiGroups: [''], resources: [services], verbs: [list, get]}]}
---
kind: Role
metadata: {name: narrow, namespace: own}
rules: [{apiGroups: [''], resources: [services], resourceNames: [collector], verbs: [get, create, patch]}]
---
kind: ClusterRoleBinding
metadata: {name: wide}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: wide}
subjects: [{kind: ServiceAccount, name: operator, namespace: own}]
---
kind: RoleBinding
metadata: {name: narrow, namespace: own}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: narrow}
subjects: [{kind: ServiceAccount, name: operator, namespace: own}]
";

    fn request(verb: &str, name: &str, code: u16) -> Request {
        Request {
            user: "system:serviceaccount:own:operator".to_owned(),
            user_agent: String::new(),
            verb: verb.to_owned(),
            group: String::new(),
            resource: "services".to_owned(),
            subresource: String::new(),
            namespace: "own".to_owned(),
            name: name.to_owned(),
            code,
            message: String::new(),
        }
    }

    fn verbs_of(rights: &[Right]) -> Vec<(&str, bool)> {
        rights.iter().map(|right| (right.verb.as_str(), right.name.is_some())).collect()
    }

    #[test]
    fn a_right_that_no_request_needs_is_found() {
        let rights = of(MANIFEST).unwrap();
        assert_eq!(rights.len(), 5);
        assert_eq!(unneeded(&rights, &[]), rights);
        // The server-side apply that creates needs two rights; `list` is needed; `get` is granted twice.
        let requests = [request("list", "", 200), request("patch", "collector", 201), request("get", "collector", 200)];
        assert_eq!(verbs_of(&unneeded(&rights, &requests)), [("get", false), ("get", true)]);
        let requests = [request("list", "", 200), request("patch", "collector", 200), request("get", "other", 404)];
        assert_eq!(verbs_of(&unneeded(&rights, &requests)), [("create", true), ("get", true)]);
    }

    #[test]
    fn a_rule_with_a_wildcard_is_refused() {
        assert!(of(&MANIFEST.replace("[list, get]", "['*']")).is_err());
        assert!(of(&MANIFEST.replace("name: wide}\nsubjects", "name: none}\nsubjects")).is_err());
    }
}
