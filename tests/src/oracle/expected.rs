//! Real connections, by the programs' own counts.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use traffic::protocol::{ClientCounts, Report};

use super::{
    EdgeName, Edges, Endpoint,
    fleet::{CLOSED, Fleet, Member, ports},
};
use crate::{Error, Result, eventually};

/// Destination of a client's target.
struct Target<'a> {
    server: &'a super::Workload,
    /// The pod, if the client called its address.
    pod: Option<&'a Member>,
    service: Option<(String, u16)>,
    /// The server's own port.
    port: u16,
}

/// Asks every program of the fleet once all connections that clients have closed have ended at the servers too, and
/// adds up what they did to each other.
///
/// # Errors
/// Returns an error if the programs' own counts contradict each other, or name a target outside of the fleet.
pub async fn edges(fleet: &Fleet) -> Result<Edges> {
    let reports = eventually("the servers to have served what the clients opened", async || {
        let reports = reports(fleet).await.map_err(|error| error.to_string())?;
        let opened =
            |report: &Report| report.clients.iter().fold((0, 0), |sum, row| (sum.0 + row.opened, sum.1 + row.open));
        let served =
            |report: &Report| report.servers.iter().fold((0, 0), |sum, row| (sum.0 + row.opened, sum.1 + row.open));
        let add = |sum: (u64, u64), row: (u64, u64)| (sum.0 + row.0, sum.1 + row.1);
        let clients = reports.values().map(opened).fold((0, 0), add);
        let servers = reports.values().map(served).fold((0, 0), add);
        if clients == servers { Ok(reports) } else { Err(format!("clients {clients:?}, servers {servers:?}")) }
    })
    .await?;
    add_up(fleet, &reports)
}

/// Returns the counts of every program of the fleet so far, by pod and container.
///
/// # Errors
/// Returns an error if a program is unreachable.
pub async fn reports(fleet: &Fleet) -> Result<BTreeMap<Endpoint, Report>> {
    let reports = fleet
        .each_client(async |_, member, program| {
            Ok(((member.pod.clone(), program.container.clone()), program.report().await?))
        })
        .await?;
    Ok(reports.into_iter().collect())
}

fn add_up(fleet: &Fleet, reports: &BTreeMap<Endpoint, Report>) -> Result<Edges> {
    let mut edges = Edges::new();
    // Direct connections by client pod, server pod and port: what remains of a server's count came through its Service.
    let mut direct: HashMap<(&str, &str, u16), u64> = HashMap::new();
    for (endpoint, report) in reports {
        let client = member(fleet, &endpoint.0)?;
        for row in &report.clients {
            let target = resolve(fleet, row.target)?;
            if let Some(pod) = target.pod {
                *direct.entry((&client.pod, &pod.pod, target.port)).or_default() += row.opened;
            }
            add_client(&mut edges, client, endpoint, &target, row);
        }
    }
    let by_ip = fleet.by_ip();
    for (endpoint, report) in reports {
        let server = member(fleet, &endpoint.0)?;
        let mut accepted: BTreeMap<(&str, u16), (&Member, u64)> = BTreeMap::new();
        for row in &report.servers {
            let client = by_ip.get(&row.peer).ok_or_else(|| {
                Error::Unexpected(format!("{endpoint:?} was called from {}, which is no pod of the fleet", row.peer))
            })?;
            accepted.entry((&client.pod, row.port)).or_insert((client, 0)).1 += row.opened;
        }
        for ((_, port), (client, opened)) in accepted {
            let directly = direct.get(&(client.pod.as_str(), server.pod.as_str(), port)).copied().unwrap_or_default();
            let through_service = opened.checked_sub(directly).ok_or_else(|| {
                Error::Unexpected(format!("{endpoint:?} accepted {opened} of {directly} direct connections at {port}"))
            })?;
            for (count, service) in [(directly, None), (through_service, Some(service_port(port)))] {
                let service = service.map(|port| (server.workload.1.clone(), port));
                let (client, server) = (client.workload.clone(), server.workload.clone());
                if count > 0 {
                    let name = EdgeName { client, server, service, port: Some(port) };
                    *edges.entry(name).or_default().servers.entry(endpoint.clone()).or_default() += count;
                }
            }
        }
    }
    Ok(edges)
}

fn add_client(edges: &mut Edges, client: &Member, endpoint: &Endpoint, target: &Target<'_>, row: &ClientCounts) {
    let name = EdgeName {
        client: client.workload.clone(),
        server: target.server.clone(),
        service: target.service.clone(),
        port: Some(target.port),
    };
    let edge = edges.entry(name).or_default();
    edge.opened += row.opened;
    edge.active += row.open;
    edge.failed += row.failed.total();
    edge.sent += row.sent;
    edge.received += row.received;
    *edge.clients.entry(endpoint.clone()).or_default() += row.opened;
}

fn member<'a>(fleet: &'a Fleet, pod: &str) -> Result<&'a Member> {
    let found = fleet.members.iter().find(|member| member.pod == pod);
    found.ok_or_else(|| Error::Unexpected(format!("{pod} is no pod of the fleet")))
}

fn resolve(fleet: &Fleet, target: SocketAddr) -> Result<Target<'_>> {
    if let Some(member) = fleet.members.iter().find(|member| member.ips.contains(&target.ip())) {
        return Ok(Target { server: &member.workload, pod: Some(member), service: None, port: target.port() });
    }
    let service = fleet.services.iter().find(|(_, ips)| ips.contains(&target.ip()));
    let (workload, _) =
        service.ok_or_else(|| Error::Unexpected(format!("{target} is neither a pod nor a Service of the fleet")))?;
    let port = leads_to().find(|(service, _)| *service == target.port()).map(|(_, server)| server);
    let port = port.ok_or_else(|| Error::Unexpected(format!("{target} is no port of the fleet's Services")))?;
    Ok(Target { server: workload, pod: None, service: Some((workload.1.clone(), target.port())), port })
}

/// Ports of the fleet's Services, each with the port to which it leads.
fn leads_to() -> impl Iterator<Item = (u16, u16)> {
    ports().map(|port| (port.service, port.server)).into_iter().chain([CLOSED])
}

/// Returns the Service's port that leads to a server's port; 0 if none does.
fn service_port(server: u16) -> u16 {
    leads_to().find(|(_, port)| *port == server).map(|(service, _)| service).unwrap_or_default()
}
