//! Folding: while the table of flows is nearly full, flows with external addresses share folded rows.

/// Number of networks that the agent can store beside the special ones.
pub const NETWORKS: u32 = 256;

/// No flow is folded, and no folded row exists.
pub const OFF: u32 = 0;
/// A flow without a row of its own is counted in its folded row, if its remote address is external.
pub const ON: u32 = 1;
/// As [`ON`] for flows whose folded row has open connections. Other flows get rows of their own.
pub const DRAINING: u32 = 2;

/// Returns whether an address is never external, given in network order, IPv4 as IPv4-mapped. These ranges of the IANA
/// registries of special-purpose addresses (RFC 6890) are used within clusters and machines.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the address's last bits")]
pub const fn is_special(address: &[u8; 16]) -> bool {
    let word = u128::from_be_bytes(*address);
    if word >> 32 == 0xffff {
        let v4 = word as u32;
        // 0.0.0.0/8, 10.0.0.0/8, 127.0.0.0/8
        matches!(v4 >> 24, 0 | 10 | 127)
            // 100.64.0.0/10
            || v4 >> 22 == (100 << 2) | 1
            // 169.254.0.0/16, 192.168.0.0/16
            || matches!(v4 >> 16, 0xa9fe | 0xc0a8)
            // 172.16.0.0/12
            || v4 >> 20 == (172 << 4) | 1
    } else {
        // ::/127, fc00::/7, fe80::/10
        word >> 1 == 0 || word >> 121 == 0xfc >> 1 || word >> 118 == 0xfe80 >> 6
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv6Addr};

    use super::*;

    fn is_special_text(text: &str) -> bool {
        let octets = match text.parse().unwrap() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
        };
        is_special(&octets)
    }

    #[test]
    fn first_and_last_addresses_of_special_ranges_are_special() {
        let ranges = [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("::", "::1"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        for (first, last) in ranges {
            assert!(is_special_text(first) && is_special_text(last), "{first} to {last}");
        }
    }

    #[test]
    fn neighbors_of_special_ranges_are_external() {
        let neighbors = [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.51.100.1",
            "203.0.113.1",
            "::2",
            "::fffe:ffff:ffff",
            "::1:0:0:0",
            "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe00::",
            "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fec0::",
            "2001:db8::1",
        ];
        for neighbor in neighbors {
            assert!(!is_special_text(neighbor), "{neighbor}");
        }
    }
}
