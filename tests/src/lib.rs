//! Support for tests that cross crates: a real cluster, namespaces in it, the traffic program in its pods, the chart,
//! and the API server's audit log.
//!
//! ```no_run
//! # async fn example() -> scopeprobe_tests::Result<()> {
//! let cluster = scopeprobe_tests::Cluster::shared().await?;
//! let namespace = cluster.namespace("example").await?;
//! let server = namespace.traffic_pod("server", Some("node-1"), &["main"]).await?.remove(0);
//! let client = namespace.traffic_pod("client", Some("node-2"), &["main"]).await?.remove(0);
//! let port = server.echo("[::]:0").await?.port();
//! let target = (namespace.pod_ips("server").await?[0], port).into();
//! client.connect(traffic::protocol::Connect { count: 10, send: 5, receive: 5, ..traffic::protocol::Connect::to(target) }).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod audit;
pub mod chart;
pub mod cluster;
mod container_root;
pub mod control_plane;
pub mod crash;
pub mod dropped_packets;
pub mod error;
pub mod forward;
pub mod inventory;
pub mod kernel_counts;
pub mod manifest;
pub mod namespace;
pub mod oracle;
pub mod outside_host;
pub mod place;
pub mod pod;
pub mod scale;
pub mod scope_probe;
mod service_routes;
pub mod traffic_pod;
pub mod undo;
pub mod versions;
pub mod wait;

pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use error::{Error, Result};
pub use wait::{eventually, eventually_within};
