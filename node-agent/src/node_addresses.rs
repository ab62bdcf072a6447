//! The node's own addresses, including its bridges'. A server that observes one of them was called by the node, or by a
//! client behind a rewritten address.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use topology::entity::Network;

/// Maximum size of the file that is read, in bytes: a node with a large routing table has a long one.
const MAX_BYTES: u64 = 1 << 20;

/// Maximum number of addresses; the rest is left out. A node has fewer addresses of its own.
const MAX_ADDRESSES: usize = 256;

/// kube-proxy's interface in IPVS mode: each node has all Services' addresses there.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// Returns the addresses of the network namespace of process 1, without loopback and link-local ones. Leaves out
/// unreadable parts: the operator also has the main addresses from the Node object.
#[must_use]
pub fn read(proc: &Path) -> BTreeSet<IpAddr> {
    of(&proc.join("1"))
}

/// Returns the addresses of the network namespace of the process with this directory.
#[must_use]
pub fn of(process: &Path) -> BTreeSet<IpAddr> {
    let v4 = local_v4(&text(&process.join("net/fib_trie")));
    let v6 = local_v6(&text(&process.join("net/if_inet6"))).into_iter().map(IpAddr::V6);
    // Services' addresses belong to no network and can be many, so they come last.
    let all = v4.in_networks.into_iter().map(IpAddr::V4).chain(v6).chain(v4.alone.into_iter().map(IpAddr::V4));
    all.take(MAX_ADDRESSES).collect()
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            tracing::debug!(%error, "can't read {}", path.display());
            String::new()
        }
    }
}

/// Addresses of interfaces.
#[derive(Debug, Default, PartialEq, Eq)]
struct LocalV4 {
    /// Those of networks that can be reached without a gateway.
    in_networks: BTreeSet<Ipv4Addr>,
    /// Those without one.
    alone: BTreeSet<Ipv4Addr>,
}

/// From `/proc/<pid>/net/fib_trie`: an address stands in the line before its `/32 host LOCAL`, a network in the line before
/// its `/24 link UNICAST`.
fn local_v4(fib_trie: &str) -> LocalV4 {
    let (mut addresses, mut networks) = (BTreeSet::new(), BTreeSet::new());
    let mut last = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("|-- ") {
            last = text.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            addresses.extend(last.filter(|address| !address.is_loopback() && !address.is_link_local()));
        } else if let Some(prefix) = line.strip_prefix('/').and_then(|line| line.strip_suffix(" link UNICAST")) {
            let prefix = prefix.parse().ok().filter(|prefix| *prefix < 32);
            networks.extend(prefix.zip(last).and_then(|(prefix, network)| Network::new(network.into(), prefix)));
        }
    }
    let is_in_network = |address: &Ipv4Addr| networks.iter().any(|network| network.contains((*address).into()));
    let (in_networks, alone) = addresses.into_iter().partition(is_in_network);
    LocalV4 { in_networks, alone }
}

/// From `/proc/<pid>/net/if_inet6`: 32 hexadecimal digits, then other things, then the interface.
fn local_v6(if_inet6: &str) -> BTreeSet<Ipv6Addr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let digits = words.next().filter(|digits| digits.len() == 32)?;
        if words.next_back() == Some(IPVS_INTERFACE) {
            return None;
        }
        u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from_bits)
    };
    let useful = |address: &Ipv6Addr| !address.is_loopback() && !address.is_unicast_link_local();
    if_inet6.lines().filter_map(address).filter(useful).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A node whose kube-proxy uses IPVS: after the interfaces' addresses come those of 300 Services.
    fn of_ipvs() -> (String, String) {
        let mut v4 = FIB_TRIE.to_owned();
        for number in 0..300 {
            let _ = write!(v4, "        |-- 10.1.{}.{}\n           /32 host LOCAL\n", number / 250, number % 250);
        }
        let v6 = "fd9600000000000000000000000000ff 04 80 00 80 kube-ipvs0\n";
        (v4, format!("{IF_INET6}{v6}"))
    }

    const FIB_TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.244.2.0\n        /24 link UNICAST\nLocal:\n     +-- 10.244.2.0/24 2 0 1\n        |-- 10.244.2.1\n           /32 host LOCAL\n        |-- 10.244.2.255\n           /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
    const IF_INET6: &str = "fd44000000000002000000000000000100 03 40 00 80 cni0\nfe80000000000000d0ce43fffee5ae06 03 40 20 80 cni0\n00000000000000000000000000000001 01 80 10 80 lo\nfd990000000000000000000000000012 02 40 00 80 eth0\n";

    #[test]
    fn addresses_of_interfaces_are_found() {
        let found = local_v4(FIB_TRIE);
        assert_eq!((found.in_networks, found.alone), (BTreeSet::from([Ipv4Addr::new(10, 244, 2, 1)]), BTreeSet::new()));
        // The first line has two digits too many.
        assert_eq!(local_v6(IF_INET6), BTreeSet::from(["fd99::12".parse().unwrap()]));
    }

    #[test]
    fn services_addresses_do_not_crowd_out_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let (v4, v6) = of_ipvs();
        std::fs::create_dir(folder.path().join("net")).unwrap();
        std::fs::write(folder.path().join("net/fib_trie"), v4).unwrap();
        std::fs::write(folder.path().join("net/if_inet6"), v6).unwrap();
        let found = of(folder.path());
        assert_eq!(found.len(), MAX_ADDRESSES);
        let [bridge, own, service] = ["10.244.2.1", "fd99::12", "fd96::ff"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert!(found.contains(&bridge) && found.contains(&own) && !found.contains(&service));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(read(Path::new("/nonexistent")), BTreeSet::new());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            local_v4(&text);
            local_v6(&text);
        }
    }
}
