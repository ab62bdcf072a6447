//! Table of pods in a checkpoint: an operator that begins after the deletion of a pod resolves the flows of the pod by it.
//!
//! Agents report the UID of a pod and the ID of a container, and the API server keeps no record of deleted pods.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use prost::Message as _;
use report::octets;
use topology::{
    directory::{BackendPort, RecordedPod},
    entity::{Pod, PodLifetime, ServiceRef, Workload},
    flow::Protocol,
    ownership::ObservedTimes,
};

/// Maximum length of a name in Kubernetes.
const MAX_NAME: usize = 253;
/// Bytes of a container ID that are kept.
const CONTAINER_ID: usize = 8;
/// Maximum number of containers of a pod that are kept, if they have several names.
const MAX_CONTAINERS: usize = 64;

/// Error of pods that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PodTableError {
    /// The table is no message.
    #[error("the table of pods is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Some of its pods are malformed.
    #[error("{malformed} of {all} pods are malformed")]
    Pods { malformed: usize, all: usize },
}

#[derive(Clone, PartialEq, prost::Message)]
struct Table {
    /// Second to which the first time of each pod is relative.
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(string, repeated, tag = "2")]
    nodes: Vec<String>,
    /// Names of containers.
    #[prost(string, repeated, tag = "3")]
    containers: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    backends: Vec<BackendRow>,
    /// Workloads other than that of the object.
    #[prost(message, repeated, tag = "5")]
    workloads: Vec<WorkloadRow>,
    #[prost(message, repeated, tag = "6")]
    pods: Vec<PodRow>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
struct BackendRow {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(uint32, tag = "3")]
    port: u32,
    #[prost(bool, tag = "4")]
    is_udp: bool,
    #[prost(uint32, tag = "5")]
    address: u32,
    #[prost(uint32, tag = "6")]
    target: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
struct WorkloadRow {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    group: String,
}

/// A pod. Numbers are places in the lists of the table.
#[derive(Clone, PartialEq, prost::Message)]
struct PodRow {
    /// The 16 bytes of a UUID.
    #[prost(bytes = "vec", tag = "1")]
    uuid: Vec<u8>,
    /// UID that is no UUID.
    #[prost(string, tag = "2")]
    uid: String,
    /// Number of first bytes of the name that the name of the row above has as well.
    #[prost(uint32, tag = "3")]
    shared: u32,
    /// Rest of the name.
    #[prost(string, tag = "4")]
    rest: String,
    #[prost(uint32, tag = "5")]
    node: u32,
    #[prost(bytes = "vec", repeated, tag = "6")]
    addresses: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "7")]
    containers: Vec<ContainerRow>,
    #[prost(uint32, repeated, tag = "8")]
    backends: Vec<u32>,
    /// 0 stands for the object's workload, 1 for the first one of the table.
    #[prost(uint32, tag = "9")]
    workload: u32,
    #[prost(string, optional, tag = "10")]
    node_uid: Option<String>,
    #[prost(bool, tag = "11")]
    host_network: bool,
    #[prost(bool, tag = "12")]
    ended: bool,
    /// The times of [`TIMES`], each relative to the one before it that is present.
    #[prost(sint64, repeated, tag = "13")]
    times: Vec<i64>,
}

/// Number of times of a pod: created, started, ran, deleted and finished by its object, known, ended and gone by an operator.
const TIMES: usize = 8;

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ContainerRow {
    /// First bytes of a hexadecimal ID.
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    /// ID that is not hexadecimal. Without either ID, the row stands for all containers of the pod.
    #[prost(string, tag = "2")]
    text: String,
    #[prost(uint32, tag = "3")]
    name: u32,
}

/// Encodes pods of this workload, or of others, within so many bytes. The first pods are the most important ones. Returns the
/// table and the number of pods in it.
pub(super) fn encode(pods: &[RecordedPod<'_>], own: &Workload, bytes: usize) -> (Vec<u8>, usize) {
    let mut count = pods.len();
    loop {
        let encoded = encode_all(&pods[..count], own);
        if encoded.len() <= bytes || count == 0 {
            return (if count == 0 { Vec::new() } else { encoded }, count);
        }
        // In proportion, and a little less: each step leaves fewer.
        count = (count * bytes / encoded.len()).min(count - 1);
    }
}

fn encode_all(pods: &[RecordedPod<'_>], own: &Workload) -> Vec<u8> {
    let mut pods: Vec<&RecordedPod<'_>> = pods.iter().collect();
    pods.sort_unstable_by_key(|recorded| (&recorded.pod.workload, &recorded.pod.name, &recorded.pod.uid));
    let first = pods.iter().flat_map(|recorded| times(recorded)).flatten().min().unwrap_or_default();
    let mut encoder = Encoder { table: Table { epoch: first, ..Table::default() }, ..Encoder::default() };
    let mut above = "";
    for recorded in pods {
        encoder.add(recorded, own, above);
        above = &recorded.pod.name;
    }
    encoder.table.encode_to_vec()
}

#[derive(Default)]
struct Encoder<'a> {
    table: Table,
    nodes: HashMap<&'a str, u32>,
    containers: HashMap<&'a str, u32>,
    backends: HashMap<BackendRow, u32>,
    workloads: HashMap<&'a Workload, u32>,
}

impl<'a> Encoder<'a> {
    fn add(&mut self, recorded: &'a RecordedPod<'_>, own: &Workload, above: &str) {
        let pod = recorded.pod.as_ref();
        let shared = shared_length(above, &pod.name);
        let uuid = uuid_bytes(&pod.uid);
        let table = &mut self.table;
        let first = pod.containers.values().next();
        let has_one_name = pod.containers.values().all(|name| Some(name) == first);
        let containers = pod.containers.iter().map(|(id, name)| {
            let name = place(&mut self.containers, name.as_str(), |name| table.containers.push((*name).to_owned()));
            match hex_bytes(id) {
                _ if has_one_name => ContainerRow { name, ..ContainerRow::default() },
                Some(bytes) => ContainerRow { id: bytes, text: String::new(), name },
                None => ContainerRow { id: Vec::new(), text: id.clone(), name },
            }
        });
        let containers: Vec<ContainerRow> = containers.take(if has_one_name { 1 } else { MAX_CONTAINERS }).collect();
        let backends = recorded
            .backends
            .iter()
            .map(|backend| place(&mut self.backends, backend_row(backend), |row| table.backends.push(row.clone())));
        let backends = backends.collect();
        let workload = if pod.workload == *own {
            0
        } else {
            1 + place(&mut self.workloads, &pod.workload, |workload| table.workloads.push(workload_row(workload)))
        };
        table.pods.push(PodRow {
            uid: if uuid.is_some() { String::new() } else { pod.uid.clone() },
            uuid: uuid.unwrap_or_default(),
            shared: u32::try_from(shared).unwrap_or_default(),
            rest: pod.name[shared..].to_owned(),
            node: place(&mut self.nodes, pod.node.as_str(), |node| table.nodes.push((*node).to_owned())),
            addresses: pod.ips.iter().copied().map(octets).collect(),
            containers,
            backends,
            workload,
            node_uid: recorded.node_uid.clone(),
            host_network: pod.host_network,
            ended: pod.ended,
            times: relative(times(recorded), table.epoch),
        });
    }
}

/// Returns the place of an item in a list of the table, to which `push` adds it.
pub(super) fn place<T: Eq + Hash>(places: &mut HashMap<T, u32>, item: T, push: impl FnOnce(&T)) -> u32 {
    let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
    *places.entry(item).or_insert_with_key(|item| {
        push(item);
        next
    })
}

/// Decodes a table of an object of this workload. Pods that are malformed are left out.
pub(super) fn decode(bytes: &[u8], own: &Workload) -> (Vec<RecordedPod<'static>>, Option<PodTableError>) {
    let table = match Table::decode(bytes) {
        Ok(table) => table,
        Err(error) => return (Vec::new(), Some(error.into())),
    };
    let mut above = String::new();
    let mut pods = Vec::new();
    for row in &table.pods {
        // A name that cannot be read makes the next ones malformed as well, as far as they share a part of it.
        let name = usize::try_from(row.shared).ok().and_then(|shared| above.get(..shared));
        let name = name.map(|shared| format!("{shared}{}", row.rest)).filter(|name| name.len() <= MAX_NAME);
        above = name.unwrap_or_default();
        pods.extend(table.pod(row, &above, own));
    }
    let (malformed, all) = (table.pods.len() - pods.len(), table.pods.len());
    (pods, (malformed > 0).then_some(PodTableError::Pods { malformed, all }))
}

/// Returns whether a table has the pods of another one, regardless of their times.
pub(super) fn contains(table: &[u8], other: &[u8]) -> bool {
    let any = Workload { namespace: String::new(), kind: String::new(), name: String::new(), group: String::new() };
    let pods = |table: &[u8]| {
        let pods = decode(table, &any).0.into_iter().map(|recorded| {
            let mut pod = recorded.pod.into_owned();
            (pod.life, pod.ended) = (PodLifetime::default(), false);
            (pod.uid.clone(), (pod, recorded.node_uid, recorded.backends))
        });
        pods.collect::<HashMap<_, _>>()
    };
    let known = pods(table);
    pods(other).iter().all(|(uid, wanted)| known.get(uid) == Some(wanted))
}

impl Table {
    fn pod(&self, row: &PodRow, name: &str, own: &Workload) -> Option<RecordedPod<'static>> {
        let uid = if row.uuid.is_empty() { row.uid.clone() } else { uuid_text(&row.uuid)? };
        if name.is_empty() || uid.is_empty() || uid.len() > MAX_NAME {
            return None;
        }
        let workload = match row.workload.checked_sub(1) {
            None => own.clone(),
            Some(number) => workload_of(self.workloads.get(usize::try_from(number).ok()?)?),
        };
        let containers = row.containers.iter().map(|container| {
            let id = if container.id.is_empty() { container.text.clone() } else { HEXLOWER.encode(&container.id) };
            Some((id, at(&self.containers, container.name)?.clone()))
        });
        let containers: BTreeMap<String, String> = containers.collect::<Option<_>>()?;
        let backends = row.backends.iter().map(|number| backend_port(at(&self.backends, *number)?));
        let backends = backends.collect::<Option<Vec<_>>>()?;
        let ips = row.addresses.iter().map(|bytes| address(bytes)).collect::<Option<Vec<_>>>()?;
        let [created, started, ran, deleted, finished, known, ended, gone] = absolute(&row.times, self.epoch)?;
        let pod = Pod {
            uid,
            namespace: workload.namespace.clone(),
            name: name.to_owned(),
            node: at(&self.nodes, row.node)?.clone(),
            host_network: row.host_network,
            ips,
            ended: row.ended,
            workload,
            containers,
            host_ports: Vec::new(),
            life: PodLifetime { created, started, ran, deleted, finished },
        };
        let observed = known.map(|known| ObservedTimes { known, ended, gone });
        Some(RecordedPod { pod: Cow::Owned(pod), node_uid: row.node_uid.clone(), observed, backends })
    }
}

/// Returns the item at a place in a list of a table.
pub(super) fn at<T>(list: &[T], number: u32) -> Option<&T> {
    list.get(usize::try_from(number).ok()?)
}

/// Seconds since the Unix epoch. Times by an operator are upper bounds, and are rounded up.
fn times(recorded: &RecordedPod<'_>) -> [Option<u64>; TIMES] {
    let PodLifetime { created, started, ran, deleted, finished } = recorded.pod.life;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
    let up = |time: SystemTime| seconds(time + Duration::from_nanos(999_999_999));
    let observed = recorded.observed;
    let known = observed.and_then(|times| up(times.known));
    let [ended, gone] = [observed.and_then(|times| times.ended), observed.and_then(|times| times.gone)];
    let [created, started, ran, deleted, finished] =
        [created, started, ran, deleted, finished].map(|time| time.and_then(seconds));
    [created, started, ran, deleted, finished, known, ended.and_then(up), gone.and_then(up)]
}

/// Returns differences without 0, which stands for an absent time.
fn relative(times: [Option<u64>; TIMES], epoch: u64) -> Vec<i64> {
    let mut before = epoch;
    let difference = |time: Option<u64>| {
        let Some(time) = time else { return 0 };
        let difference = i64::try_from(i128::from(time) - i128::from(before)).unwrap_or_default();
        before = time;
        if difference < 0 { difference } else { difference.saturating_add(1) }
    };
    let mut differences: Vec<i64> = times.into_iter().map(difference).collect();
    let length = differences.iter().rposition(|it| *it != 0).map_or(0, |last| last + 1);
    differences.truncate(length);
    differences
}

/// Returns `None` if a time is out of range.
fn absolute(differences: &[i64], epoch: u64) -> Option<[Option<SystemTime>; TIMES]> {
    let mut times = [None; TIMES];
    let mut before = epoch;
    for (time, difference) in times.iter_mut().zip(differences).filter(|(_, difference)| **difference != 0) {
        before = before.checked_add_signed(if *difference > 0 { difference - 1 } else { *difference })?;
        // Later times than this have no form in the API.
        let since = Duration::from_secs(before).min(Duration::from_secs(1 << 40));
        *time = Some(SystemTime::UNIX_EPOCH + since);
    }
    Some(times)
}

/// Returns the length of the common beginning of both.
fn shared_length(above: &str, name: &str) -> usize {
    let equal = above.bytes().zip(name.bytes()).take_while(|(one, other)| one == other).count();
    (0..=equal).rev().find(|length| name.is_char_boundary(*length)).unwrap_or(0)
}

fn backend_row(backend: &BackendPort) -> BackendRow {
    BackendRow {
        namespace: backend.service.namespace.clone(),
        service: backend.service.name.clone(),
        port: backend.port.into(),
        is_udp: backend.protocol == Protocol::Udp,
        address: u32::try_from(backend.address).unwrap_or(u32::MAX),
        target: backend.target.into(),
    }
}

fn backend_port(row: &BackendRow) -> Option<BackendPort> {
    Some(BackendPort {
        service: ServiceRef { namespace: row.namespace.clone(), name: row.service.clone() },
        port: row.port.try_into().ok()?,
        protocol: if row.is_udp { Protocol::Udp } else { Protocol::Tcp },
        address: row.address.try_into().ok()?,
        target: row.target.try_into().ok()?,
    })
}

fn workload_row(workload: &Workload) -> WorkloadRow {
    let Workload { namespace, kind, name, group } = workload.clone();
    WorkloadRow { namespace, kind, name, group }
}

fn workload_of(row: &WorkloadRow) -> Workload {
    let WorkloadRow { namespace, kind, name, group } = row.clone();
    Workload { namespace, kind, name, group }
}

/// Returns the address of these octets; `None` if they are neither 4 nor 16.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Returns the bytes of a UUID in its usual form; `None` if the text is anything else.
fn uuid_bytes(uid: &str) -> Option<Vec<u8>> {
    let bytes = HEXLOWER.decode(uid.replace('-', "").as_bytes()).ok()?;
    (uuid_text(&bytes).as_deref() == Some(uid)).then_some(bytes)
}

fn uuid_text(bytes: &[u8]) -> Option<String> {
    let groups = [0..4, 4..6, 6..8, 8..10, 10..16].map(|group| bytes.get(group).map(|group| HEXLOWER.encode(group)));
    let groups: Option<Vec<String>> = groups.into_iter().collect();
    groups.filter(|_| bytes.len() == 16).map(|groups| groups.join("-"))
}

/// Returns the first bytes of a hexadecimal ID; `None` if the text is anything else.
fn hex_bytes(id: &str) -> Option<Vec<u8>> {
    let mut bytes = HEXLOWER.decode(id.as_bytes()).ok().filter(|bytes| !bytes.is_empty())?;
    bytes.truncate(CONTAINER_ID);
    Some(bytes)
}

#[cfg(test)]
mod tests;
