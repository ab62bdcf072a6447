//! Names of Topology objects.

use topology::entity::Workload;

/// Maximum length of an object's name.
const MAX_NAME: usize = 253;

/// Kinds of Kubernetes itself that are workloads, with their groups. The same kind of another group always has its group
/// in the name.
const OWN_KINDS: [(&str, &str); 8] = [
    ("", "Pod"),
    ("", "ReplicationController"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("batch", "CronJob"),
    ("batch", "Job"),
];

/// Returns the name of a workload's Topology: `<kind>-<workload>` in lower case.
pub(super) fn name(workload: &Workload) -> String {
    let is_foreign = |(group, kind): &(&str, &str)| *kind == workload.kind && *group != workload.group;
    if OWN_KINDS.iter().any(is_foreign) {
        return name_with_group(workload);
    }
    bounded(format!("{}-{}", workload.kind.to_lowercase(), workload.name))
}

/// Returns the name where a workload of another group has the other one: `<kind>.<group>-<workload>` in lower case.
pub(super) fn name_with_group(workload: &Workload) -> String {
    bounded(format!("{}.{}-{}", workload.kind.to_lowercase(), workload.group, workload.name))
}

/// Cuts a name that is too long, and tells it apart from others by a hash.
fn bounded(name: String) -> String {
    if name.len() <= MAX_NAME {
        return name;
    }
    // FNV-1a: the name has to stay the same over releases and machines.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    // Names of objects are ASCII, so that any place is a boundary; `get` keeps it from mattering. What is between two
    // dots has to end with a letter or digit, and to begin with one.
    let kept = name.get(..MAX_NAME - 9).unwrap_or_default().trim_end_matches(['-', '.']);
    format!("{kept}-{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(group: &str, kind: &str, name: &str) -> Workload {
        let (group, kind, name) = (group.to_owned(), kind.to_owned(), name.to_owned());
        Workload { namespace: "shop".to_owned(), kind, name, group }
    }

    fn of(kind: &str, name_of_it: &str) -> String {
        name(&workload("example.com", kind, name_of_it))
    }

    #[test]
    fn kinds_are_written_in_lower_case() {
        assert_eq!(of("VirtualMachine", "redis-0.5"), "virtualmachine-redis-0.5");
        assert_eq!(name(&workload("apps", "StatefulSet", "redis")), "statefulset-redis");
        assert_eq!(name(&workload("", "Pod", "redis")), "pod-redis");
    }

    #[test]
    fn kinds_of_other_groups_that_are_named_like_kubernetes_own_have_their_group_in_the_name() {
        assert_eq!(of("StatefulSet", "redis"), "statefulset.example.com-redis");
        assert_eq!(of("Job", "redis"), "job.example.com-redis");
        assert_eq!(name_with_group(&workload("example.com", "Shop", "web")), "shop.example.com-web");
    }

    #[test]
    fn names_that_are_too_long_are_cut_and_stay_apart() {
        let longest = "a".repeat(MAX_NAME - "shop-".len());
        assert_eq!(of("Shop", &longest), format!("shop-{longest}"));
        let [one, other] = ["x", "y"].map(|end| of("Shop", &format!("{longest}{end}")));
        assert_eq!((one.len(), other.len()), (MAX_NAME, MAX_NAME));
        assert_ne!(one, other);
        assert_eq!(one[..MAX_NAME - 8], other[..MAX_NAME - 8]);
    }

    #[test]
    fn a_cut_at_a_dot_leaves_a_name_that_the_api_takes() {
        let dotted = format!("{}.{}", "a".repeat(MAX_NAME - 10 - "shop-".len()), "b".repeat(20));
        let name = of("Shop", &dotted);
        assert!(name.split('.').all(|part| !part.starts_with('-') && !part.ends_with('-')), "{name}");
    }
}
