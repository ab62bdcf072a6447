//! Names: a name server with a table of its own, and the system's resolver to ask it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket},
};

use simple_dns::{
    CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

use crate::{datagrams::serve_each, protocol::NameServer};

/// Seconds that an answer holds.
const TTL: u32 = 30;

type Table = BTreeMap<String, Vec<IpAddr>>;

/// Answers at an address from now on; returns it with the port that was chosen where 0 was asked for.
///
/// # Errors
/// Those of the system calls.
pub fn serve(server: &NameServer) -> io::Result<SocketAddr> {
    let socket = UdpSocket::bind(server.address)?;
    let address = socket.local_addr()?;
    let table = server.names.clone();
    serve_each(socket, move |socket, question, peer| {
        if let Some(answer) = answer(question, &table) {
            // Who asked and went away needs no answer.
            let _ = socket.send_to(&answer, peer);
        }
    })?;
    Ok(address)
}

/// The answer to a message; `None` where it is no question, or several.
fn answer(message: &[u8], table: &Table) -> Option<Vec<u8>> {
    let asked = Packet::parse(message).ok().filter(|packet| !packet.has_flags(PacketFlag::RESPONSE))?;
    let [question] = asked.questions.as_slice() else { return None };
    let mut answer = Packet::new_reply(asked.id());
    answer.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    answer.questions.push(question.clone());
    match table.get(&question.qname.to_string().to_ascii_lowercase()) {
        Some(addresses) => {
            let records = addresses.iter().filter_map(|address| record(*address, question.qtype));
            answer.answers =
                records.map(|data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data)).collect();
        }
        None => *answer.rcode_mut() = RCODE::NameError,
    }
    answer.build_bytes_vec().ok()
}

/// An address as the kind of record that was asked for.
fn record(address: IpAddr, asked: QTYPE) -> Option<RData<'static>> {
    match (address, asked) {
        (IpAddr::V4(address), QTYPE::TYPE(TYPE::A)) => Some(RData::A(A { address: address.into() })),
        (IpAddr::V6(address), QTYPE::TYPE(TYPE::AAAA)) => Some(RData::AAAA(AAAA { address: address.into() })),
        _ => None,
    }
}

/// Asks `getaddrinfo()`, as most programs do. In order, each once.
///
/// # Errors
/// Returns an error if the name has no address.
pub fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    let found: BTreeSet<_> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use simple_dns::{Name, QCLASS, Question};

    use super::*;

    fn question(name: &'static str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, kind.into(), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    fn table() -> Table {
        let addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|address| address.parse().unwrap());
        [("shop.example".to_owned(), addresses.into())].into()
    }

    #[test]
    fn each_kind_of_record_is_answered_by_itself() {
        for (kind, count) in [(TYPE::A, 2), (TYPE::AAAA, 1), (TYPE::MX, 0)] {
            let answer = answer(&question("Shop.example", kind), &table()).unwrap();
            let answer = Packet::parse(&answer).unwrap();
            assert_eq!((answer.id(), answer.rcode(), answer.answers.len()), (7, RCODE::NoError, count), "{kind:?}");
        }
    }

    #[test]
    fn other_names_do_not_exist_and_nonsense_is_not_answered() {
        let missing = answer(&question("no.example", TYPE::A), &table()).unwrap();
        assert_eq!(Packet::parse(&missing).unwrap().rcode(), RCODE::NameError);
        assert_eq!(answer(b"what?", &table()), None);
        assert_eq!(answer(&missing, &table()), None, "an answer");
    }
}
