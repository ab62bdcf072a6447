//! The node's own addresses, its bridges' included: a server that sees one of them was called by the node itself, or by
//! somebody whose address the node has replaced by its own.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// A node that carries a whole routing table has a long list; its own addresses are enough from what fits.
const MAX_BYTES: u64 = 1 << 20;

/// More than a node has; beyond that the rest is left out.
const MAX_ADDRESSES: usize = 256;

/// The addresses of the network namespace of the process table's first process, without loopback and link-local ones.
/// What cannot be read is left out: the node's main addresses are known from elsewhere too.
#[must_use]
pub fn read(proc: &Path) -> BTreeSet<IpAddr> {
    of(&proc.join("1"))
}

/// The same of the network namespace of the process with this directory.
#[must_use]
pub fn of(process: &Path) -> BTreeSet<IpAddr> {
    let v4 = text(&process.join("net/fib_trie"));
    let v6 = text(&process.join("net/if_inet6"));
    let all = local_v4(&v4).into_iter().map(IpAddr::V4).chain(local_v6(&v6).into_iter().map(IpAddr::V6));
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

/// From `/proc/<pid>/net/fib_trie`: an address stands in the line before its `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut address = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("|-- ") {
            address = text.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(address.filter(|address| !address.is_loopback() && !address.is_link_local()));
        }
    }
    found
}

/// From `/proc/<pid>/net/if_inet6`: 32 hexadecimal digits, then other things.
fn local_v6(if_inet6: &str) -> BTreeSet<Ipv6Addr> {
    let address = |line: &str| {
        let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from_bits)
    };
    let useful = |address: &Ipv6Addr| !address.is_loopback() && !address.is_unicast_link_local();
    if_inet6.lines().filter_map(address).filter(useful).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIB_TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.244.2.0\n        /24 link UNICAST\nLocal:\n     +-- 10.244.2.0/24 2 0 1\n        |-- 10.244.2.1\n           /32 host LOCAL\n        |-- 10.244.2.255\n           /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
    const IF_INET6: &str = "fd44000000000002000000000000000100 03 40 00 80 cni0\nfe80000000000000d0ce43fffee5ae06 03 40 20 80 cni0\n00000000000000000000000000000001 01 80 10 80 lo\nfd990000000000000000000000000012 02 40 00 80 eth0\n";

    #[test]
    fn addresses_of_interfaces_are_found() {
        assert_eq!(local_v4(FIB_TRIE), BTreeSet::from([Ipv4Addr::new(10, 244, 2, 1)]));
        // The first line has two digits too many.
        assert_eq!(local_v6(IF_INET6), BTreeSet::from(["fd99::12".parse().unwrap()]));
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
