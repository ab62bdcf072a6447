//! Names of Topology objects.

use topology::entity::Workload;

/// The longest name of an object.
const MAX_NAME: usize = 253;

/// The name of a workload's Topology: `<kind>-<workload>` in lower case. One that would be too long is cut, and told
/// apart from others by a hash.
pub(super) fn name(workload: &Workload) -> String {
    let name = format!("{}-{}", workload.kind.to_lowercase(), workload.name);
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

    fn of(kind: &str, name_of_it: &str) -> String {
        let (kind, name_of_it) = (kind.to_owned(), name_of_it.to_owned());
        name(&Workload { namespace: "shop".to_owned(), kind, name: name_of_it })
    }

    #[test]
    fn kinds_are_written_in_lower_case() {
        assert_eq!(of("StatefulSet", "redis-0.5"), "statefulset-redis-0.5");
    }

    #[test]
    fn names_that_are_too_long_are_cut_and_stay_apart() {
        let longest = "a".repeat(MAX_NAME - "job-".len());
        assert_eq!(of("Job", &longest), format!("job-{longest}"));
        let [one, other] = ["x", "y"].map(|end| of("Job", &format!("{longest}{end}")));
        assert_eq!((one.len(), other.len()), (MAX_NAME, MAX_NAME));
        assert_ne!(one, other);
        assert_eq!(one[..MAX_NAME - 8], other[..MAX_NAME - 8]);
    }

    #[test]
    fn a_cut_at_a_dot_leaves_a_name_that_the_api_takes() {
        let dotted = format!("{}.{}", "a".repeat(MAX_NAME - 10 - "job-".len()), "b".repeat(20));
        let name = of("Job", &dotted);
        assert!(name.split('.').all(|part| !part.starts_with('-') && !part.ends_with('-')), "{name}");
    }
}
