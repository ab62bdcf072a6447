//! Objects that may be malformed, decoded as far as possible: only the fields that do not decode are left out.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::PartialObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, json};
use serde_path_to_error::{Path, Segment};

/// Maximum number of parts that are left out of an object. Of one with more, only the metadata is used.
const MAX_LEFT_OUT: usize = 64;

/// Object, or the decodable parts of a malformed one.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, Malformed<K>>);

/// An object that does not decode as a whole.
#[derive(Clone, Debug)]
pub struct Malformed<K> {
    /// The first error.
    pub error: String,
    /// Metadata of the object.
    pub metadata: ObjectMeta,
    /// Paths of the parts that do not decode, in the order in which they were found.
    pub left_out: Vec<String>,
    /// The object without these parts; `None` if it does not decode without them either.
    pub rest: Option<Box<K>>,
}

impl<K: Resource<DynamicType = ()> + DeserializeOwned> Malformed<K> {
    /// Returns the object as far as it decodes, at least with its metadata. Returns `None` if required fields of its kind
    /// do not decode.
    #[must_use]
    pub fn into_rest(self) -> Option<K> {
        let bare = || json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": self.metadata});
        // As the object itself is decoded: its structures are compiled once more for each kind of source.
        self.rest.map(|rest| *rest).or_else(|| K::deserialize(&bare()).ok())
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(malformed) => &malformed.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(malformed) => &mut malformed.metadata,
        }
    }
}

impl<'de, K: Resource + DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let error = match K::deserialize(&value) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let PartialObjectMeta { metadata, .. } =
            PartialObjectMeta::<K>::deserialize(&value).map_err(serde::de::Error::custom)?;
        let mut left_out = Vec::new();
        let rest = without_malformed_parts(value, &mut left_out).map(Box::new);
        Ok(Self(Err(Malformed { error, metadata, left_out, rest })))
    }
}

/// Leaves out the smallest part around each error, until the rest decodes.
fn without_malformed_parts<K: DeserializeOwned>(mut value: Value, left_out: &mut Vec<String>) -> Option<K> {
    while left_out.len() < MAX_LEFT_OUT {
        match serde_path_to_error::deserialize(&value) {
            Ok(object) => return Some(object),
            Err(error) => left_out.push(leave_out(&mut value, error.path())?),
        }
    }
    None
}

/// Removes the part at a path, or the innermost existing part around it: a part without a required field is left out as a
/// whole. The object itself and its metadata remain.
///
/// Returns the part's JSON pointer (RFC 6901), in which an item's number counts the remaining ones.
fn leave_out(value: &mut Value, path: &Path) -> Option<String> {
    let pointer = existing_part(value, path);
    if pointer == "/metadata" || pointer.starts_with("/metadata/") {
        return None;
    }
    let (parent, last) = pointer.rsplit_once('/')?;
    match value.pointer_mut(parent)? {
        Value::Object(fields) => drop(fields.remove(&last.replace("~1", "/").replace("~0", "~"))?),
        Value::Array(items) => drop(items.remove(last.parse().ok()?)),
        _ => return None,
    }
    Some(pointer)
}

/// Returns the pointer to as much of a path as exists.
fn existing_part(value: &Value, path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let longer = match segment {
            Segment::Seq { index } => format!("{pointer}/{index}"),
            Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { .. } | Segment::Unknown => break,
        };
        if value.pointer(&longer).is_none() {
            break;
        }
        pointer = longer;
    }
    pointer
}

#[cfg(test)]
mod tests {
    use crds::{NodeProbe, Topology};
    use proptest::prelude::*;

    use super::*;

    fn node_probe(status: &Value) -> Value {
        json!({"apiVersion": "scopeprobe.io/v1alpha1", "kind": "NodeProbe", "metadata": {"name": "n"}, "spec": {}, "status": status})
    }

    fn decode<K: Resource + DeserializeOwned>(value: Value) -> Guarded<K> {
        serde_json::from_value(value).expect("its metadata decodes")
    }

    #[test]
    fn malformed_field_costs_only_itself() {
        let status =
            json!({"seen": 42, "losses": {"opened": "three", "failed": 2}, "earlier": {"seen": 40}, "conditions": 7});
        let malformed = decode::<NodeProbe>(node_probe(&status)).0.expect_err("two parts do not decode");
        assert_eq!(malformed.metadata.name.as_deref(), Some("n"));
        let mut left_out = malformed.left_out.clone();
        left_out.sort_unstable();
        assert_eq!(left_out, ["/status/conditions", "/status/losses/opened"]);
        let status = malformed.rest.expect("the rest decodes").status.expect("a status");
        assert_eq!((status.seen, status.losses.opened, status.losses.failed, status.earlier.seen), (42, 0, 2, 40));
    }

    #[test]
    fn item_without_a_required_field_is_left_out_as_a_whole() {
        let change = |time: &str| json!({"time": time, "mode": "Fallback", "reason": "Forced", "attach": ""});
        let status = json!({"seen": 1, "history": [change("2026-01-01T00:00:00Z"), {"mode": "Fallback"}, change("soon"), change("2026-01-02T00:00:00Z")]});
        let malformed = decode::<NodeProbe>(node_probe(&status)).0.expect_err("two changes do not decode");
        let status = malformed.rest.expect("the rest decodes").status.expect("a status");
        assert_eq!((status.seen, status.history.len(), malformed.left_out.len()), (1, 2, 3));
    }

    #[test]
    fn object_that_is_malformed_throughout_is_known_by_its_metadata() {
        let periods: Vec<Value> = (0..2 * MAX_LEFT_OUT).map(|number| json!({"from": number})).collect();
        let malformed = decode::<NodeProbe>(node_probe(&json!({"history": periods}))).0.expect_err("nothing decodes");
        assert!(malformed.rest.is_none() && malformed.metadata.name.is_some());
    }

    #[test]
    fn object_that_decodes_is_as_without_a_guard() {
        let value = node_probe(&json!({"seen": 42}));
        let plain: NodeProbe = serde_json::from_value(value.clone()).expect("it decodes");
        assert_eq!(decode::<NodeProbe>(value).0.expect("it decodes"), plain);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z/~]{0,6}".prop_map(Value::from),
        ];
        let key = prop_oneof![
            "[a-z/~]{1,3}",
            prop::sample::select(vec!["seen", "losses", "egress", "peer", "workload", "kind", "conditions", "opened"])
                .prop_map(str::to_owned),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..4).prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_status_leaves_an_object(status in any_json()) {
            let topology = decode::<Topology>(node_probe(&status));
            prop_assert_eq!(topology.meta().name.as_deref(), Some("n"));
            let guarded = decode::<NodeProbe>(node_probe(&status));
            if let Err(malformed) = guarded.0 {
                // Every part that was left out is one that had to be: the rest decodes, unless there were too many.
                prop_assert!(malformed.rest.is_some() || malformed.left_out.len() == MAX_LEFT_OUT);
                prop_assert!(malformed.left_out.iter().all(|part| part.starts_with("/status")));
            }
        }
    }
}
