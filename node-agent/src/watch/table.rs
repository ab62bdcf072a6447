//! A picture as text, at most 120 columns wide. Pure.

use std::fmt::Write as _;

use topology::{
    entity::CgroupOwner,
    flow::{Protocol, Role},
    plural::counted,
};

use super::{rows::Row, view::View};

/// The widest line.
pub const WIDTH: usize = 120;

/// Digits of a UID or container id that are shown.
const SHORT_UID: usize = 8;
const SHORT_ID: usize = 12;

/// Lines that are not rows: header, empty line, footer.
const FRAME: usize = 4;

/// Draws the rows and what they leave out; of the rows not more than fit into `height` lines.
#[must_use]
pub fn render(view: &View, height: Option<usize>) -> String {
    let fit = height.map_or(usize::MAX, |height| height.saturating_sub(FRAME + notes(view).len()).max(1));
    let mut text = line(&["WHO", "", "PEER", "OPENED", "ACTIVE", "FAILED", "SENT", "RECEIVED"]);
    for row in view.rows.iter().take(fit) {
        text.push_str(&line(&cells(row).each_ref().map(String::as_str)));
    }
    let hidden = view.rows.len().saturating_sub(fit);
    if hidden > 0 {
        let _ = writeln!(text, "… and {}", counted(hidden, "more row"));
    }
    text.push('\n');
    let losses = view.losses;
    let _ = writeln!(
        text,
        "{} seen since the start, {} lost, coverage {} · {} by {} on {}",
        counted(view.seen, "connection"),
        losses.opened + losses.failed,
        view.coverage,
        view.mode,
        view.attach,
        view.kernel
    );
    for note in notes(view) {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn notes(view: &View) -> Vec<String> {
    let losses = view.losses;
    let numbers = [
        (losses.closed, "end", "of connections lost: their bytes are missing"),
        (losses.closes_unseen, "end", "of connections from before not seen: their last bytes are missing"),
        (view.evicted_flows, "flow", "left out because there were too many: raise --max-flows"),
    ];
    let missing = numbers.into_iter().filter(|(number, ..)| *number > 0);
    let mut notes: Vec<_> = missing.map(|(number, noun, what)| format!("{} {what}", counted(number, noun))).collect();
    // What follows the first word are the things that don't work here.
    notes.extend(view.message.split("; ").filter(|part| !part.ends_with("capturing")).map(str::to_owned));
    notes
}

fn cells(row: &Row) -> [String; 8] {
    let direction = match row.role {
        Role::Client => "→",
        Role::Server => "←",
    };
    [
        name(&row.owner),
        direction.to_owned(),
        peer(row),
        // Those from before are connections of this row as well; JSON tells them apart.
        (row.opened + row.preexisting).to_string(),
        row.active.to_string(),
        row.failed.to_string(),
        bytes(row.bytes_sent),
        bytes(row.bytes_received),
    ]
}

fn peer(row: &Row) -> String {
    let remote = match row.remote {
        // A folded row.
        ip if ip.is_unspecified() => "(other external)".to_owned(),
        std::net::IpAddr::V6(ip) if row.role == Role::Client => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let port = match row.protocol {
        Protocol::Tcp => row.port.to_string(),
        Protocol::Udp => format!("{}/UDP", row.port),
    };
    let mut peer = match row.role {
        Role::Client => format!("{remote}:{port}"),
        Role::Server => format!("{remote} at :{port}"),
    };
    let mut names = row.peers.iter().map(name);
    if let Some(first) = names.next() {
        let others = if names.next().is_some() { ", …" } else { "" };
        let _ = write!(peer, " ({first}{others})");
    }
    peer
}

fn name(owner: &CgroupOwner) -> String {
    match owner {
        CgroupOwner::HostProcess { name } => name.clone(),
        CgroupOwner::PodContainer { pod_uid, container_id } if container_id.is_empty() => {
            format!("pod {}", start(pod_uid, SHORT_UID))
        }
        CgroupOwner::PodContainer { pod_uid, container_id } => {
            format!("pod {}/{}", start(pod_uid, SHORT_UID), start(container_id, SHORT_ID))
        }
    }
}

fn start(text: &str, length: usize) -> &str {
    text.get(..length).unwrap_or(text)
}

/// Exact where it fits, otherwise rounded down, which the unit shows.
fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
    if count < 10_000_000 {
        return count.to_string();
    }
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| count >= *unit).unwrap_or((1, "B"));
    let tenths = u128::from(count) * 10 / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// The columns' widths and whether they are aligned to the right.
const COLUMNS: [(usize, bool); 8] =
    [(32, false), (1, false), (40, false), (8, true), (7, true), (7, true), (9, true), (9, true)];

fn line(cells: &[&str; 8]) -> String {
    let mut line = String::new();
    for (cell, (width, right)) in cells.iter().zip(COLUMNS) {
        let cell = fitted(cell, width);
        let _ = if right { write!(line, "{cell:>width$} ") } else { write!(line, "{cell:width$} ") };
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// Cut in the middle: names differ at their ends.
fn fitted(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let (front, back) = ((width - 1).div_ceil(2), (width - 1) / 2);
    text.chars().take(front).chain(['…']).chain(text.chars().skip(length - back)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::watch::view::LossCounts;

    fn host(name: &str) -> CgroupOwner {
        CgroupOwner::HostProcess { name: name.into() }
    }

    fn row(owner: CgroupOwner, role: Role, remote: &str, peers: &[&str]) -> Row {
        Row {
            owner,
            role,
            remote: remote.parse().unwrap(),
            port: 5432,
            protocol: Protocol::Tcp,
            peers: peers.iter().map(|name| host(name)).collect::<BTreeSet<_>>(),
            opened: 12,
            preexisting: 1,
            active: 3,
            failed: 2,
            pending: 0,
            bytes_sent: 1234,
            bytes_received: 123_456_789,
        }
    }

    fn view(rows: Vec<Row>) -> View {
        View {
            mode: "Ebpf",
            reason: "Supported",
            message: "capturing; old sockets are not known".into(),
            attach: "SockOps",
            kernel: "6.12.0".into(),
            seen: 100,
            losses: LossCounts { opened: 4, closed: 0, failed: 1, closes_unseen: 0 },
            evicted_flows: 0,
            coverage: "95.2%".into(),
            rows,
        }
    }

    #[test]
    fn a_picture() {
        let pod = CgroupOwner::PodContainer {
            pod_uid: "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9fa".into(),
            container_id: "5d3c8f1a2b4c6d7e".into(),
        };
        let rows = vec![
            row(host("web.service"), Role::Client, "10.0.0.2", &["postgresql.service", "x"]),
            row(pod, Role::Server, "fd00::1", &[]),
            Row { protocol: Protocol::Udp, port: 53, ..row(host("dns.service"), Role::Server, "10.0.0.2", &[]) },
        ];
        let expected = "\
WHO                                PEER                                       OPENED  ACTIVE  FAILED      SENT  RECEIVED
web.service                      → 10.0.0.2:5432 (postgresql.service, …)          13       3       2      1234 117.7 MiB
pod 0b1c2d3e/5d3c8f1a2b4c        ← fd00::1 at :5432                               13       3       2      1234 117.7 MiB
dns.service                      ← 10.0.0.2 at :53/UDP                            13       3       2      1234 117.7 MiB

100 connections seen since the start, 5 lost, coverage 95.2% · Ebpf by SockOps on 6.12.0
old sockets are not known
";
        assert_eq!(render(&view(rows), None), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn long_names_keep_their_ends_and_hidden_rows_are_counted() {
        let long = format!("begin{}end", "x".repeat(100));
        let rows = vec![row(host(&long), Role::Client, "fd00:1:2:3:4:5:6:7", &[&long]); 9];
        let text = render(&view(rows), Some(8));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("beginxx") && text.contains("xxend "), "{text}");
        assert!(text.contains("… and 6 more rows"), "{text}");
    }

    #[test]
    fn small_counts_are_exact_and_large_ones_have_a_unit() {
        assert_eq!(bytes(9_999_999), "9999999");
        assert_eq!(bytes(10_485_760), "10.0 MiB");
        assert_eq!(bytes(u64::MAX), "16383.9 PiB");
    }
}
