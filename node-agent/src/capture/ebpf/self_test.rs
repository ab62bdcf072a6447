//! A connection of our own, which has to be counted; and then left out of every count.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
};

use node_agent_common::{FlowKey, FlowStats, Role};

use super::{new_flows::NewFlows, programs::Programs, slots::Slots};
use crate::capture::{attach::Attach, errors::Refusal};
use kernel_support::Reason;

/// Loopback needs microseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// A tracepoint may miss a connection now and then, and yet work.
const ATTEMPTS: u32 = 3;

/// Connects to itself and waits until both ends have been counted, opened and closed, once.
///
/// # Errors
/// Returns an error if they are not counted, or no connection can be made.
pub(super) fn run(
    attach: Attach,
    programs: &mut Programs,
    new_flow_notifications: &mut NewFlows,
    slots: &mut Slots,
) -> Result<(), Refusal> {
    let attempts = if attach == Attach::SockOps { 1 } else { ATTEMPTS };
    let mut tested = Ok(());
    for _ in 0..attempts {
        tested = attempt(attach, programs, new_flow_notifications, slots);
        if tested.is_ok() {
            break;
        }
    }
    tested
}

fn attempt(
    attach: Attach,
    programs: &mut Programs,
    new_flow_notifications: &mut NewFlows,
    slots: &mut Slots,
) -> Result<(), Refusal> {
    let netns = netns().map_err(|error| refusal(&format!("finding the own network namespace: {error}")))?;
    let port = connect().map_err(|error| refusal(&format!("connecting to 127.0.0.1: {error}")))?;
    let deadline = Instant::now() + PATIENCE;
    let mut ends: [Option<(FlowKey, u32)>; 2] = [None, None];
    loop {
        let now = Instant::now();
        new_flow_notifications
            .drain(programs, |key, slot| {
                if let Some(role) = own_end(&key, netns, port) {
                    ends[usize::from(role == Role::Server)] = Some((key, slot));
                }
                slots.assign(slot, key, now);
            })
            .map_err(|error| refusal(&format!("reading what was counted: {error}")))?;
        if let [Some(client), Some(server)] = ends
            && [client, server].iter().all(|(_, slot)| is_complete(&programs.counters.read(*slot)))
        {
            return leave_out(programs, slots, [client, server], now);
        }
        if now >= deadline {
            let counted = ends.map(|end| end.map(|(_, slot)| programs.counters.read(slot)));
            let words = counted.map(|stats| words(stats.as_ref()));
            let hint = match attach {
                Attach::SockOps => ", and no other sock_ops program may take callbacks away",
                Attach::TpBtf | Attach::Tracepoint => "",
            };
            return Err(refusal(&format!(
                "a connection of the agent to itself at 127.0.0.1:{port} was not counted as it should (client's end: \
                 {}; server's end: {}); the agent has to run in a cgroup below the cgroup root{hint}",
                words[0], words[1]
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Opens and closes one connection, and says at which port.
fn connect() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = listener.local_addr()?;
    let client = TcpStream::connect_timeout(&at, PATIENCE)?;
    let (server, from): (_, SocketAddr) = listener.accept()?;
    if from != client.local_addr()? {
        return Err(io::Error::other("another process connected to the self-test's listener first"));
    }
    drop(client);
    drop(server);
    Ok(at.port())
}

fn own_end(key: &FlowKey, netns: u32, port: u16) -> Option<Role> {
    let here = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
    let own = key.netns() == netns && key.port() == port && key.local() == here && key.remote() == here;
    key.role().filter(|_| own)
}

fn is_complete(stats: &FlowStats) -> bool {
    (stats.opened, stats.closed, stats.failed) == (1, 1, 0)
}

fn words(stats: Option<&FlowStats>) -> String {
    stats.map_or_else(
        || String::from("not seen"),
        |stats| format!("opened {}, closed {}, failed {}", stats.opened, stats.closed, stats.failed),
    )
}

fn leave_out(
    programs: &mut Programs,
    slots: &mut Slots,
    ends: [(FlowKey, u32); 2],
    now: Instant,
) -> Result<(), Refusal> {
    for (key, slot) in ends {
        programs.delete_key(&key, slot).map_err(|error| refusal(&format!("forgetting the own connection: {error}")))?;
        slots.disown(slot, now);
    }
    Ok(())
}

fn netns() -> io::Result<u32> {
    let inode = fs::metadata("/proc/self/ns/net")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

fn refusal(message: &str) -> Refusal {
    Refusal { reason: Reason::SelfTestFailed, message: String::from(message) }
}
