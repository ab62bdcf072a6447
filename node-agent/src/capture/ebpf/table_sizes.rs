//! Sizes the kernel's tables of sockets for this machine.

use std::fs;

use crate::capture::settings::Settings;

/// Default if the kernel does not report it.
const USUAL: u32 = 65_536;

/// Room for sockets that are created between the count and the end of the first listing.
const SPARE: u32 = 1024;

/// Tables grow with what is in them; the room alone takes 16 bytes an entry.
const MOST: u32 = 1 << 20;

/// Returns how many preexisting connections can be watched for their end: more than there are sockets.
pub(super) fn for_old_connections(settings: &Settings) -> u32 {
    settings.max_preexisting.unwrap_or_else(|| {
        let sockets = fs::read_to_string(settings.proc.join("net/sockstat")).ok();
        sockets.and_then(|text| tcp_sockets(&text)).map_or(USUAL, room_for)
    })
}

fn room_for(sockets: u32) -> u32 {
    sockets.saturating_add(sockets / 4).saturating_add(SPARE).min(MOST)
}

/// Of `TCP: inuse 5 orphan 0 tw 0 alloc 21 mem 1`: what is allocated, which other than the rest is of all network
/// namespaces.
fn tcp_sockets(sockstat: &str) -> Option<u32> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_ascii_whitespace();
    words.find(|word| *word == "alloc")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKSTAT: &str = "sockets: used 290\nTCP: inuse 5 orphan 0 tw 3 alloc 90021 mem 1\nUDP: inuse 2 mem 0\n";

    #[test]
    fn there_is_more_room_than_there_are_sockets() {
        assert_eq!(tcp_sockets(SOCKSTAT), Some(90_021));
        assert!(room_for(90_021) > 90_021 + SPARE);
        assert_eq!((room_for(0), room_for(u32::MAX)), (SPARE, MOST));
    }

    #[test]
    fn what_does_not_tell_is_not_guessed_at() {
        for other in ["", "TCP:", "TCP: inuse 5", "TCP: alloc", "TCP: alloc x", "UDP: alloc 4"] {
            assert_eq!(tcp_sockets(other), None, "{other}");
        }
    }

    #[test]
    fn this_kernel_counts_all_its_sockets() {
        let count = || tcp_sockets(&fs::read_to_string("/proc/net/sockstat").unwrap()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(count() > 0, "{listener:?}");
    }
}
