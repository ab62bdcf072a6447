//! Certificates as Secrets and `ConfigMaps`. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{
    error::CertificateError,
    generation::{Generation, UnixSeconds},
    rotation::Generations,
};
use crate::operator_deployment::MANAGED_BY;

/// Key of the operator's Secret: a list of [`Generation`]s as JSON.
const GENERATIONS: &str = "generations.json";
/// Key of the `ConfigMap`, and of Secrets of other programs.
pub(super) const CA: &str = "ca.crt";

/// Returns whether the operator made this object.
pub(super) fn is_ours(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|value| value == MANAGED_BY.1)
}

/// Returns the operator's Secret. `there` is the present one.
pub(super) fn secret(
    name: &str,
    generations: &Generations,
    there: Option<&Secret>,
    owner: Option<OwnerReference>,
) -> Result<Secret, CertificateError> {
    let json = serde_json::to_vec(generations.all())
        .map_err(|error| CertificateError::Malformed { field: GENERATIONS, problem: error.to_string() })?;
    Ok(Secret {
        metadata: metadata(name, there.map(|there| &there.metadata), owner),
        data: Some(BTreeMap::from([(GENERATIONS.to_owned(), ByteString(json))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// Returns the `ConfigMap` with the certificates of CAs. `there` is the present one.
pub(super) fn config_map(
    name: &str,
    bundle: &str,
    there: Option<&ConfigMap>,
    owner: Option<OwnerReference>,
) -> ConfigMap {
    ConfigMap {
        metadata: metadata(name, there.map(|there| &there.metadata), owner),
        data: Some(BTreeMap::from([(CA.to_owned(), bundle.to_owned())])),
        ..ConfigMap::default()
    }
}

/// Returns the certificates of CAs in the `ConfigMap`; empty if it has none.
pub(super) fn bundle(there: &ConfigMap) -> &str {
    there.data.as_ref().and_then(|data| data.get(CA)).map(String::as_str).unwrap_or_default()
}

fn metadata(name: &str, there: Option<&ObjectMeta>, owner: Option<OwnerReference>) -> ObjectMeta {
    let labels = [MANAGED_BY, ("app.kubernetes.io/part-of", "scopeprobe")];
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        owner_references: owner.map(|owner| vec![owner]),
        // The API server refuses to replace another version.
        resource_version: there.and_then(|there| there.resource_version.clone()),
        uid: there.and_then(|there| there.uid.clone()),
        ..ObjectMeta::default()
    }
}

/// Reads the operator's own Secret. Each of its certificates that has not expired is valid.
pub(super) fn generations(secret: &Secret, name: &str, now: UnixSeconds) -> Result<Generations, CertificateError> {
    let malformed = |problem| CertificateError::Malformed { field: GENERATIONS, problem };
    let json = secret.data.as_ref().and_then(|data| data.get(GENERATIONS));
    let json = json.ok_or_else(|| malformed("is missing".to_owned()))?;
    let read: Result<Vec<Generation>, _> = serde_json::from_slice(&json.0);
    let read = read.map_err(|error| malformed(format!("is malformed: {error}")))?;
    for generation in &read {
        let Some(expires) = generation.expires else {
            return Err(malformed("has a certificate without `expires`".to_owned()));
        };
        if expires > now {
            // It is valid from its beginning to its end. A clock that was ahead may have been set since.
            generation.certified(name, now.max(generation.created))?;
            generation.certified(name, expires.saturating_sub(1))?;
        }
    }
    Ok(Generations::new(read))
}

/// Reads a Secret of another program, in the format of cert-manager.
pub(super) fn foreign(secret: &Secret, name: &str, now: UnixSeconds) -> Result<Generation, CertificateError> {
    let field = |field: &'static str| {
        let malformed = |problem: &str| CertificateError::Malformed { field, problem: problem.to_owned() };
        let bytes = secret.data.as_ref().and_then(|data| data.get(field)).ok_or_else(|| malformed("is missing"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| malformed("is no text"))
    };
    let read = Generation {
        created: now,
        expires: None,
        ca: field(CA)?,
        certificate: field("tls.crt")?,
        key: field("tls.key")?,
    };
    read.certified(name, now)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::generation::tests::{NAME, NOW},
        *,
    };

    fn made() -> Generation {
        Generation::make(NAME, NOW, Duration::from_hours(1)).unwrap()
    }

    #[test]
    fn secret_is_read_as_it_was_written() {
        let written = Generations::new(vec![made(), made()]);
        let there = secret("a", &written, None, None).unwrap();
        assert!(is_ours(&there.metadata));
        assert_eq!(generations(&there, NAME, NOW).unwrap(), written);
        assert!(!is_ours(&ObjectMeta::default()));
    }

    #[test]
    fn damaged_secret_is_refused_with_its_fault() {
        let good = secret("a", &Generations::new(vec![made()]), None, None).unwrap();
        let with = |json: &str| {
            let data = Some([(GENERATIONS.to_owned(), ByteString(json.into()))].into());
            generations(&Secret { data, ..good.clone() }, NAME, NOW).unwrap_err().to_string()
        };
        assert!(with("{}").starts_with("generations.json is malformed"));
        assert!(with("[{}]").contains("missing field"));
        assert!(with("\u{0}").contains("malformed"));
        let other_key = Generation { key: made().key, ..made() };
        assert!(with(&serde_json::to_string(&[other_key]).unwrap()).contains("not valid"));
        let longer = Generation { expires: Some(NOW + 7200), ..made() };
        assert!(with(&serde_json::to_string(&[longer]).unwrap()).contains("not valid"), "it expires before");
        assert!(generations(&Secret::default(), NAME, NOW).unwrap_err().to_string().contains("is missing"));
    }

    #[test]
    fn foreign_secret_needs_three_fields_that_belong_together() {
        let one = made();
        let fields = [(CA, &one.ca), ("tls.crt", &one.certificate), ("tls.key", &one.key)];
        let data: BTreeMap<_, _> =
            fields.map(|(field, text)| (field.to_owned(), ByteString(text.clone().into()))).into();
        let of = |data| foreign(&Secret { data: Some(data), ..Secret::default() }, NAME, NOW);
        assert_eq!(of(data.clone()).unwrap(), Generation { expires: None, ..one.clone() });
        for (field, _) in fields {
            let mut less = data.clone();
            less.remove(field);
            assert!(of(less).unwrap_err().to_string().starts_with(field));
        }
        let mut other = data;
        other.insert("tls.key".to_owned(), ByteString(made().key.into()));
        assert!(matches!(of(other), Err(CertificateError::Invalid { .. })));
    }
}
