//! The map that Topology objects draw, without I/O: it reads objects, joins both ends of each edge, filters, groups, compares
//! and writes pictures and tables.

pub mod bundle;
pub mod diff;
pub mod explain;
pub mod filter;
pub mod inventory;
pub mod layout;
pub mod level;
pub mod live;
pub mod map;
pub mod node;
pub mod reach;
pub mod read;
pub mod render;
pub mod unused;

pub use map::{Edge, Map, Peer};
