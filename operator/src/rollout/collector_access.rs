//! Files and arguments by which an agent reaches the collector: CAs from a `ConfigMap`, and a token for this purpose alone.
//! Pure.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection,
};

use crate::{
    certificates::keeper::{CA_FILE, ca_config_map, server_name},
    settings::{AgentSettings, COLLECTOR_AUDIENCE},
};

/// Name of the volume.
const VOLUME: &str = "collector";
/// Mount path of the volume in the agent's container.
const MOUNT: &str = "/var/run/scopeprobe/collector";
/// Name of the token's file.
const TOKEN_FILE: &str = "token";
/// Lifetime of a token. The kubelet replaces it after four fifths of that.
const TOKEN_SECONDS: i64 = 3600;
/// Mode of the files: the agent is root without the right to read others' files.
const FILE_MODE: i32 = 0o400;

/// Returns whether agents use TLS at this URL.
fn is_tls(url: &str) -> bool {
    url.starts_with("https://")
}

/// Returns the agent's arguments for the collector, apart from its URL.
pub(super) fn arguments(url: &str, namespace: &str, settings: &AgentSettings) -> Vec<String> {
    if !is_tls(url) {
        return vec!["--insecure-plaintext".to_owned()];
    }
    vec![
        format!("--operator-ca={MOUNT}/{CA_FILE}"),
        format!("--operator-name={}", server_name(&settings.collector_service, namespace)),
        format!("--token-file={MOUNT}/{TOKEN_FILE}"),
    ]
}

/// Returns the volume with both files; `None` without TLS.
pub(super) fn volume(url: &str, settings: &AgentSettings) -> Option<Volume> {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(COLLECTOR_AUDIENCE.to_owned()),
            expiration_seconds: Some(TOKEN_SECONDS),
            path: TOKEN_FILE.to_owned(),
        }),
        ..VolumeProjection::default()
    };
    let ca = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: ca_config_map(&settings.collector_service),
            items: Some(vec![KeyToPath { key: CA_FILE.to_owned(), path: CA_FILE.to_owned(), mode: None }]),
            // A node that starts without it captures, and reports once the kubelet has added the file.
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    };
    is_tls(url).then(|| Volume {
        name: VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource { default_mode: Some(FILE_MODE), sources: Some(vec![token, ca]) }),
        ..Volume::default()
    })
}

/// Returns the mount of the volume; `None` without TLS.
pub(super) fn mount(url: &str) -> Option<VolumeMount> {
    is_tls(url).then(|| VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    })
}
