//! Interprets cgroup paths. Pure: reads no file.
//!
//! Sources of the shapes: kubelet `pkg/kubelet/cm` (pod cgroups: `pod<UID>` with the cgroupfs driver,
//! `kubepods-<qos>-pod<UID with underscores>.slice` with systemd). The runtimes' scopes: `cri-containerd-<id>.scope`,
//! `crio-<id>.scope`, `docker-<id>.scope`. Containerd's `<slice>:cri-containerd:<id>` if kubelet and runtime disagree
//! on the driver. And systemd's units.

use topology::entity::CgroupOwner;

/// Container ids of containerd, CRI-O, Docker and Podman: 32 random bytes in hexadecimal.
const CONTAINER_ID_LENGTH: usize = 64;

/// Length of a container ID in a host process's name, as the runtimes' own tools print it.
const SHORT_ID_LENGTH: usize = 12;

/// The longest name of a host process, in characters: names go into Kubernetes objects.
pub const MAX_NAME_LENGTH: usize = 128;

/// Information from a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The path names its owner.
    Named(CgroupOwner),
    /// Only the cgroup's processes can say whose it is.
    Nameless,
}

/// Interprets a path below the node's cgroup v2 root, such as `/kubepods/besteffort/pod<UID>/<container id>`. Never
/// fails: an unknown shape is [`Shape::Nameless`].
#[must_use]
pub fn shape(path: &str) -> Shape {
    if let Some(owner) = pod_container(path) {
        return Shape::Named(owner);
    }
    match unit(path).or_else(|| container_outside_of_pods(path)) {
        Some(name) => Shape::Named(CgroupOwner::HostProcess { name: bounded(&name) }),
        None => Shape::Nameless,
    }
}

/// The cgroup's own name, for owners that neither path nor processes name.
#[must_use]
pub fn own_name(path: &str) -> String {
    match path.rsplit('/').find(|segment| !segment.is_empty()) {
        Some(segment) => bounded(&format!("cgroup {segment}")),
        None => "host".to_owned(),
    }
}

/// Cuts a name to [`MAX_NAME_LENGTH`] characters and replaces control characters, so that it is fit to be shown.
#[must_use]
pub fn bounded(name: &str) -> String {
    let printable = |c: char| if c.is_control() { '?' } else { c };
    if name.chars().count() <= MAX_NAME_LENGTH {
        return name.chars().map(printable).collect();
    }
    name.chars().take(MAX_NAME_LENGTH - 1).map(printable).chain(['…']).collect()
}

/// The outermost pod on the path: what a container runs inside of itself is still that container.
fn pod_container(path: &str) -> Option<CgroupOwner> {
    // A segment of containerd's mixed form holds both the pod's and the container's name.
    let mut segments = path.split(['/', ':']);
    let mut below_kubepods = false;
    let pod_uid = segments.by_ref().find_map(|segment| {
        below_kubepods |= segment.contains("kubepods");
        if below_kubepods { pod_uid(segment) } else { None }
    })?;
    let container_id = segments.find_map(container_id_in_pod).unwrap_or_default();
    Some(CgroupOwner::PodContainer { pod_uid, container_id })
}

/// The UID in a pod's cgroup name. Static pods have a hash of their manifest instead (32 digits without dashes, also
/// in the annotation `kubernetes.io/config.hash` of their mirror pod): it is left as it is.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let (before, uid) = name.rsplit_once("pod")?;
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let uid = uid.replace('_', "-").to_ascii_lowercase();
    (is_uuid(&uid) || (uid.len() == 32 && is_hex(&uid))).then_some(uid)
}

fn is_uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    [8, 4, 4, 4, 12].iter().all(|length| groups.next().is_some_and(|group| group.len() == *length && is_hex(group)))
        && groups.next().is_none()
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn container_id_in_pod(segment: &str) -> Option<String> {
    // CRI-O's monitor runs beside the container, in the pod's name.
    if segment.starts_with("crio-conmon-") {
        return None;
    }
    container_id(segment).map(|(_, id)| id.to_owned())
}

/// Splits `<prefix><separator><container id>.scope` or a bare id into prefix (with separator) and id.
fn container_id(segment: &str) -> Option<(&str, &str)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (prefix, id) = name.split_at_checked(name.len().checked_sub(CONTAINER_ID_LENGTH)?)?;
    let separated = prefix.is_empty() || prefix.ends_with(['-', '_']);
    (separated && is_hex(id)).then_some((prefix, id))
}

/// The innermost systemd unit that can hold processes. A runtime's scope is named by runtime and short id.
fn unit(path: &str) -> Option<String> {
    let (segment, is_scope) = path.rsplit('/').find_map(|segment| {
        let named = |kind| segment.strip_suffix(kind).is_some_and(|name| !name.is_empty());
        let is_scope = named(".scope");
        (is_scope || named(".service")).then_some((segment, is_scope))
    })?;
    Some(match container_id(segment) {
        Some((prefix, id)) if is_scope => format!("{prefix}{}", &id[..SHORT_ID_LENGTH]),
        _ => segment.to_owned(),
    })
}

/// `/docker/<id>` and the like, without systemd.
fn container_outside_of_pods(path: &str) -> Option<String> {
    let mut parent = "container";
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if let Some((prefix, id)) = container_id(segment) {
            let runtime = if prefix.is_empty() { parent } else { prefix.trim_end_matches(['-', '_']) };
            return Some(format!("{runtime}-{}", &id[..SHORT_ID_LENGTH]));
        }
        parent = segment;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9fa";
    const UID_SYSTEMD: &str = "0b1c2d3e_4f50_6172_8394_a5b6c7d8e9fa";
    const HASH_UID: &str = "3f2c9a7be0d14c5f8a6b7c8d9e0f1a2b";
    const ID: &str = "5d3c8f1a2b4c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6";

    fn pod(uid: &str, id: &str) -> Shape {
        Shape::Named(CgroupOwner::PodContainer { pod_uid: uid.into(), container_id: id.into() })
    }

    fn host(name: &str) -> Shape {
        Shape::Named(CgroupOwner::HostProcess { name: name.into() })
    }

    #[test]
    fn containers_of_pods() {
        let cases = [
            // kubelet's cgroupfs driver, each class of service
            (format!("/kubepods/besteffort/pod{UID}/{ID}"), UID, ID),
            (format!("/kubepods/burstable/pod{UID}/{ID}"), UID, ID),
            (format!("/kubepods/pod{UID}/{ID}"), UID, ID),
            // systemd driver: containerd, CRI-O (also with its inner cgroup), Docker
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_SYSTEMD}.slice/cri-containerd-{ID}.scope"
                ),
                UID,
                ID,
            ),
            (format!("/kubepods.slice/kubepods-pod{UID_SYSTEMD}.slice/crio-{ID}.scope"), UID, ID),
            (format!("/kubepods.slice/kubepods-pod{UID_SYSTEMD}.slice/crio-{ID}.scope/container"), UID, ID),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_SYSTEMD}.slice/docker-{ID}.scope"
                ),
                UID,
                ID,
            ),
            // kubelet with systemd, containerd with cgroupfs
            (
                format!(
                    "/system.slice/containerd.service/kubepods-besteffort-pod{UID_SYSTEMD}.slice:cri-containerd:{ID}"
                ),
                UID,
                ID,
            ),
            // kind: kubelet's own root, and the whole node inside of a container
            (format!("/kubelet/kubepods/besteffort/pod{UID}/{ID}"), UID, ID),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UID_SYSTEMD}.slice/cri-containerd-{ID}.scope"
                ),
                UID,
                ID,
            ),
            (format!("/docker/{}/kubelet/kubepods/pod{UID}/{ID}", ID.replace('5', "6")), UID, ID),
            // what a container runs inside of itself
            (format!("/kubepods/pod{UID}/{ID}/init.scope"), UID, ID),
            (format!("/kubepods/pod{UID}/{ID}/docker/{}", ID.replace('5', "6")), UID, ID),
            (format!("/kubepods/pod{UID}/{ID}/kubepods/pod{}/{ID}", UID.replace('0', "1")), UID, ID),
            // static pods
            (format!("/kubepods/burstable/pod{HASH_UID}/{ID}"), HASH_UID, ID),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH_UID}.slice/cri-containerd-{ID}.scope"
                ),
                HASH_UID,
                ID,
            ),
            // Kata
            (format!("/kubepods/pod{UID}/kata_{ID}"), UID, ID),
            // the pod's own cgroup, CRI-O's monitor, and what is no container id
            (format!("/kubepods/besteffort/pod{UID}"), UID, ""),
            (format!("/kubepods/besteffort/pod{UID}/"), UID, ""),
            (format!("/kubepods.slice/kubepods-pod{UID_SYSTEMD}.slice"), UID, ""),
            (format!("/kubepods.slice/kubepods-pod{UID_SYSTEMD}.slice/crio-conmon-{ID}.scope"), UID, ""),
            (format!("/kubepods/pod{UID}/{}", &ID[1..]), UID, ""),
            (format!("/kubepods/pod{UID}/x{ID}"), UID, ""),
            // upper case is allowed in UIDs that a kubelet was given
            (format!("/kubepods/pod{}/{ID}", UID.to_uppercase()), UID, ID),
        ];
        for (path, uid, id) in cases {
            assert_eq!(shape(&path), pod(uid, id), "{path}");
        }
    }

    #[test]
    fn processes_of_the_host() {
        let cases = [
            ("/system.slice/sshd.service".to_owned(), "sshd.service"),
            ("/init.scope".to_owned(), "init.scope"),
            ("/user.slice/user-1000.slice/session-3.scope".to_owned(), "session-3.scope"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/worker".to_owned(), "web.service"),
            (format!("/system.slice/docker-{ID}.scope"), "docker-5d3c8f1a2b4c"),
            (format!("/machine.slice/libpod-{ID}.scope/container"), "libpod-5d3c8f1a2b4c"),
            (format!("/docker/{ID}"), "docker-5d3c8f1a2b4c"),
            (format!("/{ID}"), "container-5d3c8f1a2b4c"),
        ];
        for (path, name) in cases {
            assert_eq!(shape(&path), host(name), "{path}");
        }
    }

    #[test]
    fn paths_that_say_nothing() {
        let uid_elsewhere = format!("/batch/pod{UID}/job");
        for path in [
            "",
            "/",
            "//",
            "/kubepods",
            "/kubepods.slice",
            "/kubepods/podx",
            "/system.slice",
            "/.scope",
            &uid_elsewhere,
        ] {
            assert_eq!(shape(path), Shape::Nameless, "{path}");
        }
        assert_eq!(own_name("/"), "host");
        assert_eq!(own_name("/a/b/"), "cgroup b");
    }

    #[test]
    fn names_are_bounded_and_printable() {
        let Shape::Named(CgroupOwner::HostProcess { name }) = shape(&format!("/{}\n.service", "ü".repeat(500))) else {
            panic!("a unit")
        };
        assert_eq!(name.chars().count(), MAX_NAME_LENGTH);
        assert_eq!(bounded("a\nb"), "a?b");
    }

    proptest! {
        #[test]
        fn any_text_is_a_path(path in "\\PC*") {
            let _ = (shape(&path), own_name(&path));
        }

        #[test]
        fn any_segments_are_a_path(
            segments in prop::collection::vec(
                prop_oneof![
                    Just("kubepods".to_owned()), Just("kubepods.slice".to_owned()), Just(format!("pod{UID}")),
                    Just(ID.to_owned()), Just(format!("x-{ID}.scope")), "[a-z0-9_.:é-]{0,70}",
                ],
                0..8,
            ),
        ) {
            let path = format!("/{}", segments.join("/"));
            if let Shape::Named(CgroupOwner::PodContainer { pod_uid, container_id }) = shape(&path) {
                prop_assert!(path.contains(&pod_uid) && path.contains(&container_id));
            }
        }

        #[test]
        fn a_pod_below_any_prefix_is_found(prefix in "(/[a-z]{1,9}){0,4}", uid in "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id in "[0-9a-f]{64}") {
            prop_assert_eq!(shape(&format!("{prefix}/kubepods/burstable/pod{uid}/{id}")), pod(&uid, &id));
            let systemd = uid.replace('-', "_");
            prop_assert_eq!(
                shape(&format!("{prefix}/kubepods.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{id}.scope")),
                pod(&uid, &id)
            );
        }
    }
}
