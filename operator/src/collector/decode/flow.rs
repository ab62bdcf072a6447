//! Makes a checked flow of the one in a message.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use report::{MAX_NAT_PEERS, MAX_REMOTE_NAME_BYTES, MAX_REMOTE_NAMES, v1alpha1 as wire};
use topology::{
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    nat_peer::NatPeer,
    rtt::{RttBucket, RttHistogram},
    sighting::Ages,
    with_flow_counts,
};

use super::field::{Invalid, at_most, countable, decode_ip, invalid};

/// No agent runs for longer: ten years.
const MAX_AGE: Duration = Duration::from_hours(10 * 365 * 24);

/// A flow as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::collector) struct Flow {
    pub key: FlowKey,
    pub counters: FlowCounters,
    pub ages: Ages,
    /// Names that have led to its remote address.
    pub remote_names: Vec<String>,
    /// NAT peers of its connections.
    pub nat_peers: Vec<(NatPeer, u64)>,
}

pub(super) fn decode_flow(index: usize, flow: wire::Flow) -> Result<Flow, Invalid> {
    // Written only for an error: formatting for each flow would take longer than the rest.
    let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "flows[{index}].{name}"));
    let role = match wire::Role::try_from(flow.role) {
        Ok(wire::Role::Client) => Role::Client,
        Ok(wire::Role::Server) => Role::Server,
        Ok(wire::Role::Unspecified) | Err(_) => {
            return Err(invalid(field("role"), format!("{} is no known role", flow.role)));
        }
    };
    let local = decode_ip(&flow.local_ip).map_err(|problem| invalid(field("local_ip"), problem))?;
    let remote = decode_ip(&flow.remote_ip).map_err(|problem| invalid(field("remote_ip"), problem))?;
    if local.is_ipv4() != remote.is_ipv4() {
        return Err(invalid(field("remote_ip"), "is of another family than local_ip"));
    }
    let port = u16::try_from(flow.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| invalid(field("port"), format!("{} is not between 1 and 65535", flow.port)))?;
    let counters = flow.counters.as_ref().ok_or_else(|| invalid(field("counters"), "are missing"))?;
    let protocol = match wire::Protocol::try_from(flow.protocol) {
        Ok(wire::Protocol::Tcp) => Protocol::Tcp,
        Ok(wire::Protocol::Udp) => Protocol::Udp,
        Err(_) => return Err(invalid(field("protocol"), format!("{} is no known protocol", flow.protocol))),
    };
    Ok(Flow {
        key: FlowKey { cgroup_id: flow.cgroup_id, netns: flow.netns, role, local, remote, port, protocol },
        counters: FlowCounters { run: flow.run, ..decode_counters(&field("counters"), counters)? },
        ages: decode_ages(&flow, field)?,
        nat_peers: decode_nat_peers(&field("nat_peers"), role, &flow.nat_peers)?,
        remote_names: decode_remote_names(&field("remote_names"), flow.remote_names)?,
    })
}

fn decode_nat_peers(field: &dyn Display, role: Role, ends: &[wire::NatPeer]) -> Result<Vec<(NatPeer, u64)>, Invalid> {
    if ends.len() > MAX_NAT_PEERS {
        return Err(invalid(field, format!("are {}; at most {MAX_NAT_PEERS}", ends.len())));
    }
    let decode = |(index, end): (usize, &wire::NatPeer)| {
        let field = |name: &'static str| fmt::from_fn(move |f| write!(f, "{field}[{index}].{name}"));
        let ip = decode_ip(&end.ip).map_err(|problem| invalid(field("ip"), problem))?;
        let port = u16::try_from(end.port).ok().filter(|port| (*port == 0) == (role == Role::Server));
        let port = port.ok_or_else(|| {
            invalid(field("port"), format!("{} is not between 1 and 65535, or not 0 for a client", end.port))
        })?;
        countable(field("opened"), end.opened)?;
        Ok((NatPeer { ip, port }, end.opened))
    };
    ends.iter().enumerate().map(decode).collect()
}

/// They are shown to people, who must not be misled by letters that cannot be seen: printable ASCII only, as DNS names
/// are written.
fn decode_remote_names(field: &dyn Display, names: Vec<String>) -> Result<Vec<String>, Invalid> {
    if names.len() > MAX_REMOTE_NAMES {
        return Err(invalid(field, format!("are {}; at most {MAX_REMOTE_NAMES}", names.len())));
    }
    for (index, name) in names.iter().enumerate() {
        let field = fmt::from_fn(|f| write!(f, "{field}[{index}]"));
        at_most(&field, name, MAX_REMOTE_NAME_BYTES)?;
        if name.is_empty() || !name.bytes().all(|letter| letter.is_ascii_graphic()) {
            return Err(invalid(field, format!("{name:?} is no DNS name")));
        }
    }
    Ok(names)
}

fn decode_ages<F: Display>(flow: &wire::Flow, field: impl Fn(&'static str) -> F) -> Result<Ages, Invalid> {
    let [first, news, changed] =
        [flow.first_seen_age_ms, flow.news_age_ms, flow.changed_age_ms].map(Duration::from_millis);
    if first > MAX_AGE {
        return Err(invalid(
            field("first_seen_age_ms"),
            format!("{} ms are more than ten years", flow.first_seen_age_ms),
        ));
    }
    if news > first {
        let problem =
            format!("{} ms are longer ago than the {} of first_seen_age_ms", flow.news_age_ms, flow.first_seen_age_ms);
        return Err(invalid(field("news_age_ms"), problem));
    }
    if changed > news {
        let problem = format!("{} ms are longer ago than the {} of news_age_ms", flow.changed_age_ms, flow.news_age_ms);
        return Err(invalid(field("changed_age_ms"), problem));
    }
    Ok(Ages::of(first, news, changed))
}

/// That more connections are closed than open is no error: a loss, or a reading between the two counts, makes it so.
fn decode_counters(field: &dyn Display, counters: &wire::Counters) -> Result<FlowCounters, Invalid> {
    macro_rules! decode {
        ({ $($growing:ident)* } { $($open:ident)* } { $($part:ident: $whole:ident,)* }) => {{
            $(countable(format_args!("{field}.{}", stringify!($growing)), counters.$growing)?;)*
            $(countable(format_args!("{field}.{}", stringify!($open)), counters.$open)?;)*
            $(part_of(field, stringify!($part), counters.$part, counters.$whole.into())?;)*
            FlowCounters {
                $($growing: counters.$growing,)*
                $($open: counters.$open,)*
                run: 0,
                methods: methods(field, counters.methods)?,
                retransmits: counters.retransmits,
                rtt: rtt(field, &counters.rtt)?,
            }
        }};
    }
    countable(format_args!("{field}.retransmits"), counters.retransmits.unwrap_or_default())?;
    Ok(with_flow_counts!(decode))
}

/// Checks that a count is at most the one that it is a part of; an unknown one is 0.
fn part_of(field: &dyn Display, name: &str, part: u64, whole: Option<u64>) -> Result<(), Invalid> {
    let whole = whole.unwrap_or_default();
    if part > whole {
        let problem = format!("{part} is more than the {whole} that it is a part of");
        return Err(invalid(format_args!("{field}.{name}"), problem));
    }
    Ok(())
}

fn methods(field: &dyn Display, bits: u32) -> Result<Methods, Invalid> {
    Methods::from_bits(bits)
        .ok_or_else(|| invalid(format_args!("{field}.methods"), format!("{bits} has bits that mean nothing here")))
}

fn rtt(field: &dyn Display, counts: &[u32]) -> Result<RttHistogram, Invalid> {
    RttHistogram::from_counts(counts).ok_or_else(|| {
        let problem = format!("has {} buckets; at most {}", counts.len(), RttBucket::COUNT);
        invalid(format_args!("{field}.rtt"), problem)
    })
}
