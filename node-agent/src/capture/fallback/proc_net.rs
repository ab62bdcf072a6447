//! Reads `/proc/<pid>/net/tcp` and `tcp6`: the TCP sockets of a process's network namespace. Any process may read it.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use node_agent_common::state;

use super::socket::{Dump, Endpoint, Endpoints, Listener, Socket, SocketId};

/// Everything that is open in the namespace of the process with this directory.
pub(super) fn dump(process: &Path) -> io::Result<Dump> {
    read_tables(process, |_| false)
}

/// Everything that listens in the namespace of the process with this directory.
pub(super) fn listeners(process: &Path) -> io::Result<Vec<Listener>> {
    // A table lists its listeners first.
    Ok(read_tables(process, |dump| !dump.sockets.is_empty())?.listeners)
}

/// Reads both tables, each until `is_enough`.
fn read_tables(process: &Path, is_enough: impl Fn(&Dump) -> bool) -> io::Result<Dump> {
    let mut dump = read_table(&process.join("net/tcp"), &is_enough)?;
    match read_table(&process.join("net/tcp6"), &is_enough) {
        // Without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => {
            let Dump { sockets, listeners } = other?;
            dump.sockets.extend(sockets);
            dump.listeners.extend(listeners);
        }
    }
    Ok(dump)
}

fn read_table(path: &Path, is_enough: impl Fn(&Dump) -> bool) -> io::Result<Dump> {
    let mut reader = BufReader::with_capacity(64 * 1024, File::open(path)?);
    let (mut line, mut dump) = (Vec::with_capacity(256), Dump::default());
    while reader.read_until(b'\n', &mut line)? != 0 && !is_enough(&dump) {
        take(&line, &mut dump);
        line.clear();
    }
    Ok(dump)
}

/// `  1: 0100007F:1F90 0200007F:C350 01 …:… …:… … uid timeout inode …`
fn take(line: &[u8], dump: &mut Dump) -> Option<()> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (local, remote) = (endpoint(words.nth(1)?)?, endpoint(words.next()?)?);
    let state = u8::try_from(number(words.next()?, 16)?).ok()?;
    // Queues, timer, retransmissions, user, timeout.
    let inode = number(words.nth(5)?, 10)?;
    match state {
        state::LISTEN => {
            let address = (!local.0.is_unspecified()).then_some(local.0);
            dump.listeners.push(Listener { address, port: local.1, cgroup: None, inode: Some(inode) });
        }
        state::SYN_RECV | state::TIME_WAIT | state::CLOSE => {}
        _ => dump.sockets.push(Socket {
            id: SocketId(inode),
            ends: Endpoints { local, remote },
            state,
            cgroup: None,
            bytes: None,
            rtt: None,
            is_final: false,
        }),
    }
    Some(())
}

/// An address as 32-bit words in the machine's byte order, then the port.
fn endpoint(word: &[u8]) -> Option<Endpoint> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    let port = u16::try_from(number(word.get(colon + 1..)?, 16)?).ok()?;
    let digits = word.get(..colon)?;
    let word_at = |at: usize| number(digits.get(at * 8..at * 8 + 8)?, 16).and_then(|word| u32::try_from(word).ok());
    let address = match digits.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word_at(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *chunk = word_at(at)?.to_ne_bytes();
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

fn number(digits: &[u8], base: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, base).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4001 1 0000 100 0 0 10 0\n   1: 0100007F:1F90 0200000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 4002 1 0000 20 4 30 10 -1\n   2: 0100007F:1F90 0200000A:C351 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0000\n";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000300000A:C352 08 00000000:00000000 00:00000000 00000000     0        0 4003 1 0000 20 4 30 10 -1\n   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4004 1 0000 100 0 0 10 0\n";

    #[cfg(target_endian = "little")]
    #[test]
    fn both_tables_are_read() {
        let process = tempfile::tempdir().unwrap();
        fs::create_dir(process.path().join("net")).unwrap();
        fs::write(process.path().join("net/tcp"), TCP).unwrap();
        fs::write(process.path().join("net/tcp6"), TCP6).unwrap();
        let found = dump(process.path()).unwrap();
        let here = (IpAddr::from([127, 0, 0, 1]), 8080);
        let ends = |last, port| Endpoints { local: here, remote: (IpAddr::from([10, 0, 0, last]), port) };
        let sockets: Vec<_> = found.sockets.iter().map(|socket| (socket.id.0, socket.ends, socket.state)).collect();
        assert_eq!(
            sockets,
            [
                (4002, ends(2, 50_000), state::ESTABLISHED),
                // IPv4 by a socket of IPv6.
                (4003, ends(3, 50_002), state::CLOSE_WAIT),
            ]
        );
        let listeners: Vec<_> = found.listeners.iter().map(|at| (at.address, at.port, at.inode)).collect();
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(listeners, [(None, 8080, Some(4001)), (Some(v6), 80, Some(4004))]);
        fs::remove_file(process.path().join("net/tcp6")).unwrap();
        assert_eq!(dump(process.path()).unwrap().sockets.len(), 1, "IPv6 may be off");
        assert_eq!(super::listeners(process.path()).unwrap(), found.listeners[..1]);
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = take(&line, &mut Dump::default());
        }
    }
}
