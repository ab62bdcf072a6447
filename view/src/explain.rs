//! Describes how an edge is known.

use crds::{CaptureMethod, EdgePod, IdentitySource, SeenEnds};

use crate::{
    map::{Edge, EdgePods, printable},
    render::Names,
};

/// Returns some lines about an edge: who observed it, its counts, and what is not known.
#[must_use]
pub fn edge(edge: &Edge, names: &Names<'_>) -> String {
    let counters = &edge.counters;
    let (client, server) = (names.name(&edge.client), names.name(&edge.server));
    let mut lines = vec![format!("{client} -> {} ({})", edge.called_by_name(server), edge.id)];
    if edge.service.is_some() {
        let port = edge.port.map(|port| format!(" at port {port}")).unwrap_or_default();
        lines.push(format!("answered by {server}{port}"));
    }
    if !edge.via.is_empty() {
        lines.push(format!("through {}", edge.via.join(", ")));
    }
    lines.push(format!("{} opened, {} of them open now", counters.opened, counters.active));
    if counters.has_failures() {
        let last = edge.last_failed.as_ref().map(|time| format!(", the last one at {}", time.0)).unwrap_or_default();
        lines.push(format!("{} attempts failed{last}, {} have no answer yet", counters.failed, counters.pending));
    }
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "an unknown number of".to_owned(), |bytes| bytes.to_string());
    lines.push(format!(
        "{} bytes to the server, {} bytes back",
        bytes(counters.bytes_sent),
        bytes(counters.bytes_received)
    ));
    if counters.without_bytes > 0 {
        lines.push(format!("at least: not all bytes of {} connections are known", counters.without_bytes));
    }
    lines.extend(observation(edge));
    lines.extend(pods("client", &edge.client_pods));
    lines.extend(pods("server", &edge.server_pods));
    if edge.is_inferred {
        lines.push("the direction of some connections is a guess".to_owned());
    }
    let time = |what: &str, time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().map(|time| format!("{what} {}", time.0))
    };
    lines.extend(time("first seen", &edge.first_seen));
    lines.extend(time("last seen, at the earliest,", &edge.last_seen));
    let mut text = lines.join("\n  ");
    text.push('\n');
    text
}

/// Returns the name of a method, as objects have it.
pub(crate) fn method(method: CaptureMethod) -> &'static str {
    match method {
        CaptureMethod::Ebpf => "EBPF",
        CaptureMethod::SockDiag => "SockDiag",
        CaptureMethod::Procfs => "Procfs",
        CaptureMethod::Conntrack => "Conntrack",
    }
}

/// Returns the ends that agents observed, the methods, and the source of a name that is less than certain.
fn observation(edge: &Edge) -> Vec<String> {
    let methods = edge.methods.iter().map(|of| match of {
        CaptureMethod::Ebpf => "eBPF, which records each connection",
        CaptureMethod::SockDiag => "scans of open sockets (SockDiag)",
        CaptureMethod::Procfs => "scans of open sockets (Procfs)",
        CaptureMethod::Conntrack => "events of connection tracking",
    });
    let methods = methods.collect::<Vec<_>>().join(", and by ");
    let by = if methods.is_empty() { String::new() } else { format!(" by {methods}") };
    let seen = match edge.seen {
        Some(SeenEnds::Both) => Some(format!("agents observed both ends{by}")),
        Some(SeenEnds::Client) => {
            Some(format!("an agent observed the client{by}; the server is known by its address alone"))
        }
        Some(SeenEnds::Server) => {
            Some(format!("an agent observed the server{by}; the client is known by its address alone"))
        }
        None => (!by.is_empty()).then(|| format!("observed{by}")),
    };
    // With a cgroup, there is no doubt. With one end, its line has the source.
    let identity = edge.identity.filter(|_| edge.seen == Some(SeenEnds::Both)).and_then(|identity| match identity {
        IdentitySource::Cgroup => None,
        IdentitySource::Netns => Some("one end is known by its network namespace: the container is unknown"),
        IdentitySource::Conntrack => Some("one end is known by an address that connection tracking recorded"),
        IdentitySource::Ip => Some("one end is known by the owner of its address"),
    });
    seen.into_iter().chain(identity.map(str::to_owned)).collect()
}

/// Returns a line about the pods of one end, if any is known.
fn pods(end: &str, pods: &EdgePods) -> Option<String> {
    // The object has an entry for each container.
    let mut listed: Vec<(&str, u64, u64)> = Vec::new();
    for EdgePod { pod, opened, failed, .. } in &pods.listed {
        match listed.iter_mut().find(|(name, ..)| name == pod) {
            Some((_, all_opened, all_failed)) => {
                *all_opened = all_opened.saturating_add(*opened);
                *all_failed = all_failed.saturating_add(*failed);
            }
            None => listed.push((pod, *opened, *failed)),
        }
    }
    let of = listed.into_iter().map(|(pod, opened, failed)| {
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        format!("{} ({opened} opened{failed})", printable(pod))
    });
    let more = (pods.omitted > 0).then(|| format!("{} more that the object does not list", pods.omitted));
    let parts: Vec<String> = of.chain(more).collect();
    (!parts.is_empty()).then(|| format!("pods of the {end}: {}", parts.join(", ")))
}
