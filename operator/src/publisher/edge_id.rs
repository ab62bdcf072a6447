//! Identifier of an edge: the same in the objects of both ends, after a restart, and over releases.

use std::fmt;

use sha2::{Digest, Sha256};
use topology::{
    edge::{EdgeKey, Peer},
    flow::Protocol,
};

/// Identifier of an edge, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EdgeId(pub(super) u64);

impl EdgeId {
    /// Returns the identifier of an edge: the first 64 bits of a hash of all that tells it apart from others.
    pub(super) fn of(key: &EdgeKey) -> Self {
        let mut hash = FieldHash(Sha256::new());
        hash.peer(&key.client);
        hash.peer(&key.server);
        match &key.service {
            Some(of) => {
                hash.field(&of.service.namespace);
                hash.field(&of.service.name);
                hash.number(Some(of.port));
            }
            None => hash.number(None),
        }
        hash.number(key.port);
        hash.field(match key.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        });
        hash.finish()
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digits.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for EdgeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// Hash of a sequence of fields, each with its length, so that no two sequences have the same bytes.
struct FieldHash(Sha256);

impl FieldHash {
    fn field(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text);
    }

    /// A field of digits, or an empty one.
    fn number(&mut self, number: Option<u16>) {
        let digits = number.map(|number| number.to_string());
        self.field(digits.as_deref().unwrap_or_default());
    }

    fn fields(&mut self, fields: &[&str]) {
        for field in fields {
            self.field(field);
        }
    }

    fn peer(&mut self, peer: &Peer) {
        match peer {
            Peer::Workload(it) => self.fields(&["Workload", &it.namespace, &it.group, &it.kind, &it.name]),
            Peer::Service(it) => self.fields(&["Service", &it.namespace, &it.name]),
            Peer::Node { node } => self.fields(&["Node", node]),
            Peer::HostProcess { node, name } => self.fields(&["HostProcess", node, name]),
            Peer::ApiServer => self.field("APIServer"),
            Peer::ExternalGroup { name } => self.fields(&["ExternalGroup", name]),
            Peer::ExternalName { name } => self.fields(&["DNSName", name]),
            Peer::External { ip } => self.fields(&["IP", &ip.to_string()]),
            Peer::BehindNode { node } => self.fields(&["External", node]),
            Peer::OtherExternal => self.field("OtherExternal"),
            Peer::UnknownPod { uid } => self.fields(&["UnknownPod", "uid", uid]),
            Peer::SomePod { ip } => self.fields(&["UnknownPod", "ip", &ip.to_string()]),
        }
    }

    fn finish(self) -> EdgeId {
        let hash = self.0.finalize();
        let first = hash.iter().take(8);
        EdgeId(first.fold(0, |id, byte| id << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use topology::entity::{ServicePortRef, ServiceRef, Workload};

    use super::*;

    fn workload(group: &str, kind: &str, name: &str) -> Peer {
        let (group, kind, name) = (group.to_owned(), kind.to_owned(), name.to_owned());
        Peer::Workload(Workload { namespace: "shop".to_owned(), kind, name, group })
    }

    fn edge() -> EdgeKey {
        let service = ServiceRef { namespace: "shop".to_owned(), name: "catalog".to_owned() };
        EdgeKey {
            client: workload("apps", "Deployment", "frontend"),
            server: workload("apps", "Deployment", "catalog"),
            service: Some(ServicePortRef { service, port: 80 }),
            port: Some(8080),
            protocol: Protocol::Tcp,
        }
    }

    /// Identifiers are written into objects and known to people's tools. The expected ones were computed by another
    /// program: the first eight bytes of SHA-256 over each field with its length before it.
    #[test]
    fn edge_ids_stay_the_same_over_releases() {
        let external = EdgeKey {
            server: Peer::External { ip: "192.0.2.1".parse().expect("an address") },
            service: None,
            port: None,
            protocol: Protocol::Udp,
            ..edge()
        };
        let ids = [edge(), external].map(|key| EdgeId::of(&key).to_string());
        assert_eq!(ids, ["c0a3c3a42f3018f2", "ee91b7f0825b4591"]);
    }

    #[test]
    fn edge_ids_differ_by_each_part_of_the_key() {
        let changed = |change: &dyn Fn(&mut EdgeKey)| {
            let mut key = edge();
            change(&mut key);
            key
        };
        let ip = |text: &str| text.parse().expect("an address");
        let keys = [
            edge(),
            changed(&|key| key.port = None),
            changed(&|key| key.port = Some(80)),
            changed(&|key| key.protocol = Protocol::Udp),
            changed(&|key| key.service = None),
            changed(&|key| key.service.as_mut().expect("it is there").port = 81),
            changed(&|key| std::mem::swap(&mut key.client, &mut key.server)),
            changed(&|key| key.server = workload("other.example.com", "Deployment", "catalog")),
            changed(&|key| key.server = workload("apps", "StatefulSet", "catalog")),
            changed(&|key| key.server = Peer::ApiServer),
            changed(&|key| key.server = Peer::OtherExternal),
            changed(&|key| key.server = Peer::External { ip: ip("10.0.0.1") }),
            changed(&|key| key.server = Peer::SomePod { ip: ip("10.0.0.1") }),
            changed(&|key| key.server = Peer::ExternalName { name: "a".to_owned() }),
            changed(&|key| key.server = Peer::ExternalGroup { name: "a".to_owned() }),
            changed(&|key| key.server = Peer::Node { node: "a".to_owned() }),
            changed(&|key| key.server = Peer::BehindNode { node: "a".to_owned() }),
            changed(&|key| key.server = Peer::UnknownPod { uid: "a".to_owned() }),
            changed(&|key| key.server = Peer::HostProcess { node: "a".to_owned(), name: "bc".to_owned() }),
            changed(&|key| key.server = Peer::HostProcess { node: "ab".to_owned(), name: "c".to_owned() }),
        ];
        let ids: HashSet<EdgeId> = keys.iter().map(EdgeId::of).collect();
        assert_eq!(ids.len(), keys.len());
    }

    #[test]
    fn edge_ids_are_read_as_they_are_written() {
        for id in [EdgeId(0), EdgeId(0xab), EdgeId(u64::MAX)] {
            assert_eq!(EdgeId::parse(&id.to_string()), Some(id));
        }
        for wrong in ["", "0", "+00000000000000a", "000000000000000g", "00000000000000000"] {
            assert_eq!(EdgeId::parse(wrong), None, "{wrong}");
        }
    }
}
