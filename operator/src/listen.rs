//! Binds a port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use tokio::net::TcpListener;

/// Listens on an address. `[::]` stands for both families, also on a node without IPv6.
///
/// # Errors
/// Returns an error that names the command line's `flag` if the address cannot be used.
pub async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let mut bound = TcpListener::bind(address).await;
    if bound.is_err() && address.ip() == Ipv6Addr::UNSPECIFIED {
        // A node without IPv6 has no `[::]`, which otherwise stands for both families.
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    bound.with_context(|| format!("cannot listen on {address}: choose another with {flag}"))
}
