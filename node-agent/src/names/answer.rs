//! Answers of name servers, read strictly: anybody may send one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use report::MAX_REMOTE_NAME_BYTES;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, TYPE, rdata::RData};

/// That a name leads to addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for: lower case, without the final dot, printable ASCII, 1 to 253 bytes.
    pub name: String,
    /// Addresses of the name, through any aliases.
    pub addresses: Vec<IpAddr>,
    /// For how long that holds.
    pub ttl: Duration,
}

impl Answer {
    /// Reads a message (RFC 1035, 4); `None` for what is none, no answer without an error, or one that names no address.
    #[must_use]
    pub fn read(message: &[u8]) -> Option<Self> {
        let packet = Packet::parse(message).ok()?;
        let [question] = packet.questions.as_slice() else { return None };
        let asked = matches!(question.qtype, QTYPE::TYPE(TYPE::A | TYPE::AAAA));
        if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError || !asked {
            return None;
        }
        let aliases = aliases(&packet, &question.qname);
        let mut addresses = Vec::new();
        let mut ttl = u32::MAX;
        for record in packet.answers.iter().filter(|record| record.class == CLASS::IN) {
            if !aliases.iter().any(|alias| is_same(alias, &record.name)) {
                continue;
            }
            ttl = ttl.min(record.ttl);
            match &record.rdata {
                RData::A(found) => addresses.push(IpAddr::from(Ipv4Addr::from(found.address))),
                RData::AAAA(found) => addresses.push(Ipv6Addr::from(found.address).to_canonical()),
                _ => {}
            }
        }
        let name = printable(&question.qname).filter(|_| !addresses.is_empty())?;
        Some(Self { name, addresses, ttl: Duration::from_secs(ttl.into()) })
    }
}

/// The name and what it is an alias of, one after the other. Each record is followed once, so that circles end.
fn aliases<'a>(packet: &Packet<'a>, name: &Name<'a>) -> Vec<Name<'a>> {
    let mut found = vec![name.clone()];
    let mut records: Vec<_> = packet.answers.iter().collect();
    while let Some(last) = found.last() {
        let next = records.iter().position(|record| {
            record.class == CLASS::IN && matches!(record.rdata, RData::CNAME(_)) && is_same(&record.name, last)
        });
        let Some(next) = next else { break };
        if let RData::CNAME(alias) = &records.swap_remove(next).rdata {
            found.push(alias.0.clone());
        }
    }
    found
}

/// Compares names without regard to case (RFC 4343).
fn is_same(one: &Name<'_>, other: &Name<'_>) -> bool {
    one.to_string().eq_ignore_ascii_case(&other.to_string())
}

fn printable(name: &Name<'_>) -> Option<String> {
    let text = name.to_string().to_ascii_lowercase();
    let fits = (1..=MAX_REMOTE_NAME_BYTES).contains(&text.len());
    (fits && text.bytes().all(|letter| letter.is_ascii_graphic())).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A name as it stands in a message.
    fn labels(name: &str) -> Vec<u8> {
        let parts = name.split('.').filter(|part| !part.is_empty());
        let mut bytes: Vec<u8> =
            parts.flat_map(|part| [&[u8::try_from(part.len()).unwrap()], part.as_bytes()].concat()).collect();
        bytes.push(0);
        bytes
    }

    fn record(name: &[u8], kind: u8, ttl: u32, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [name, &[0, kind, 0, 1], &ttl.to_be_bytes(), &length, data].concat()
    }

    /// A response to one question of type A, by hand.
    fn response(name: &str, flags: [u8; 2], records: &[Vec<u8>]) -> Vec<u8> {
        let count = u8::try_from(records.len()).unwrap();
        let header = [&[7, 7][..], &flags, &[0, 1, 0, count, 0, 0, 0, 0]].concat();
        [header, labels(name), vec![0, 1, 0, 1], records.concat()].concat()
    }

    const NO_ERROR: [u8; 2] = [0x81, 0x80];
    /// To the question's name.
    const POINTER: [u8; 2] = [0xc0, 12];
    const A: u8 = 1;
    const CNAME: u8 = 5;
    const AAAA: u8 = 28;

    fn sample() -> Vec<u8> {
        let cdn = labels("edge.cdn.example");
        response(
            "WWW.Example.com",
            NO_ERROR,
            &[
                record(&POINTER, CNAME, 300, &cdn),
                record(&cdn, A, 20, &[192, 0, 2, 1]),
                record(&cdn, A, 30, &[192, 0, 2, 2]),
                record(&cdn, AAAA, 30, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
                // An address of a name that was not asked for.
                record(&labels("bank.example"), A, 30, &[192, 0, 2, 66]),
            ],
        )
    }

    #[test]
    fn the_name_that_was_asked_for_leads_to_the_addresses() {
        let addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|address| address.parse().unwrap());
        let ttl = Duration::from_secs(20);
        let expected = Answer { name: "www.example.com".into(), addresses: addresses.into(), ttl };
        assert_eq!(Answer::read(&sample()), Some(expected));
    }

    #[test]
    fn what_leads_nowhere_is_no_answer() {
        let address = [record(&POINTER, A, 20, &[192, 0, 2, 1])];
        assert!(Answer::read(&response("a.example", NO_ERROR, &address)).is_some());
        for flags in [[0x01, 0x00], [0x81, 0x83]] {
            assert_eq!(Answer::read(&response("a.example", flags, &address)), None, "a question, an error");
        }
        assert_eq!(Answer::read(&response("a.example", NO_ERROR, &[])), None);
        let circle =
            [record(&POINTER, CNAME, 1, &labels("b.example")), record(&labels("b.example"), CNAME, 1, &POINTER)];
        assert_eq!(Answer::read(&response("a.example", NO_ERROR, &circle)), None);
        assert_eq!(Answer::read(&response("", NO_ERROR, &address)), None, "the root has no name");
        assert_eq!(Answer::read(&response("a b.example", NO_ERROR, &address)), None, "a space");
        let cut = &sample()[..60];
        assert_eq!(Answer::read(cut), None);
    }

    #[test]
    fn a_pointer_to_itself_ends() {
        let mut message = response("", NO_ERROR, &[]);
        message.splice(12..13, POINTER);
        assert_eq!(Answer::read(&message), None);
    }

    fn is_sound(answer: Option<Answer>) -> bool {
        answer.is_none_or(|answer| {
            let name = answer.name.as_bytes();
            (1..=253).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic) && !answer.addresses.is_empty()
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_answer_or_a_sound_one(mut bytes in prop::collection::vec(any::<u8>(), 0..600), counts in 0_u8..4) {
            if let Some(head) = bytes.first_chunk_mut::<12>() {
                // Mostly what a header says that is not turned away at once.
                *head = [1, 1, 0x81, 0x80, 0, 1, 0, counts, 0, counts / 2, 0, 0];
            }
            prop_assert!(is_sound(Answer::read(&bytes)));
        }

        #[test]
        fn damaged_answers_are_no_answer_or_a_sound_one(
            cut in 0_usize..400,
            changes in prop::collection::vec((0_usize..300, prop_oneof![any::<u8>(), Just(0xc0), Just(0), Just(12)]), 0..8),
        ) {
            let mut bytes = sample();
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            prop_assert!(is_sound(Answer::read(&bytes)));
        }
    }
}
