//! Hash tables with a fast hasher, seeded at random for each process. A join looks up several keys per flow.

/// A hash map.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
/// A hash set.
pub(crate) type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;
