//! Maps of sockets (sockmap): programs of other owners redirect the payload of sockets in them, so that TCP does not count it.

/// Maximum number of marks of open sockets that were seen in such a map.
pub const MARKS: u32 = 65_536;

/// Number of facts, as indices of an array.
pub const FACTS: u32 = 2;
/// 1 once a socket was marked.
pub const HAS_MARKS: u32 = 0;
/// 1 while there are programs that redirect payload. Ended connections without any payload may then have had some.
pub const HAS_PROGRAMS: u32 = 1;
