//! Decodes messages whose memory is bounded by their size on the wire.
//!
//! An empty repeated field takes two bytes on the wire and hundreds in memory. The number of such fields is therefore checked
//! before the message is decoded.

use std::marker::PhantomData;

use prost::{
    Message,
    bytes::Buf,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::{MAX_FLOWS_PER_MESSAGE, MAX_IDENTITIES_PER_MESSAGE, MAX_NODE_ADDRESSES, v1alpha1};

/// Maximum size of a flow on the wire, in bytes; twice that of the largest valid one.
const MAX_FLOW_BYTES: usize = 4096;
/// Maximum number of fields of a flow. A valid one has at most 33.
const MAX_FLOW_FIELDS: usize = 64;

/// Field numbers in `AgentReport`.
const IDENTITIES: u32 = 7;
const FLOWS: u32 = 8;
const NODE_ADDRESSES: u32 = 9;

/// Message that is checked before it is decoded.
pub trait Bounded {
    /// Returns the violated limit, with the field's name.
    ///
    /// # Errors
    /// The described one.
    fn check(_bytes: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

impl Bounded for v1alpha1::CollectorReply {}

impl Bounded for v1alpha1::AgentReport {
    fn check(bytes: &[u8]) -> Result<(), String> {
        let (mut identities, mut flows, mut addresses) = (0, 0, 0);
        for_each_field(bytes, |number, content| match number {
            IDENTITIES => count("identities", &mut identities, MAX_IDENTITIES_PER_MESSAGE),
            FLOWS => {
                check_flow(flows, content)?;
                count("flows", &mut flows, MAX_FLOWS_PER_MESSAGE)
            }
            NODE_ADDRESSES => count("node_addresses", &mut addresses, MAX_NODE_ADDRESSES),
            _ => Ok(()),
        })
    }
}

fn count(field: &str, counted: &mut usize, max: usize) -> Result<(), String> {
    *counted += 1;
    if *counted > max { Err(format!("{field}: are more than {max}")) } else { Ok(()) }
}

fn check_flow(index: usize, content: &[u8]) -> Result<(), String> {
    if content.len() > MAX_FLOW_BYTES {
        return Err(format!("flows[{index}]: has {} bytes; at most {MAX_FLOW_BYTES}", content.len()));
    }
    let mut fields = 0;
    for_each_field(content, |_, _| count(&format!("flows[{index}]: fields"), &mut fields, MAX_FLOW_FIELDS))
}

/// Calls `check` with the number of each field, and with its content if that has a length. Ends at bytes that are no
/// field: they are reported when the message is decoded.
fn for_each_field(mut bytes: &[u8], mut check: impl FnMut(u32, &[u8]) -> Result<(), String>) -> Result<(), String> {
    while bytes.has_remaining() {
        let Ok((number, wire_type)) = decode_key(&mut bytes) else { return Ok(()) };
        let length = match wire_type {
            WireType::Varint => {
                let Ok(_) = decode_varint(&mut bytes) else { return Ok(()) };
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => {
                let Ok(length) = decode_varint(&mut bytes) else { return Ok(()) };
                usize::try_from(length).unwrap_or(usize::MAX)
            }
            // The messages have no groups, and the decoder refuses them at this place.
            WireType::StartGroup | WireType::EndGroup => return Ok(()),
        };
        let Some((content, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
        check(number, content)?;
        bytes = rest;
    }
    Ok(())
}

/// Codec of all messages.
#[derive(Clone, Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Bounded + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Decoder of checked messages.
#[derive(Clone, Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Bounded> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer of a message is one piece. If it were several, the first one alone would be checked, and a cut field
        // ends the check.
        U::check(buffer.chunk()).map_err(Status::invalid_argument)?;
        self.0.decode(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_NAT_PEERS, MAX_REMOTE_NAME_BYTES, MAX_REMOTE_NAMES};
    use v1alpha1::{AgentReport, CaptureState, Counters, Flow, Identity, NatPeer};

    /// The largest valid flow.
    fn largest() -> Flow {
        let most = u64::MAX;
        Flow {
            cgroup_id: most,
            netns: u32::MAX,
            role: 2,
            local_ip: vec![1; 16],
            remote_ip: vec![1; 16],
            port: 65_535,
            counters: Some(Counters {
                opened: most,
                closed: most,
                failed: most,
                preexisting: most,
                bytes_sent: most,
                bytes_received: most,
                preexisting_bytes_sent: most,
                preexisting_bytes_received: most,
                open_bytes_sent: most,
                open_bytes_received: most,
                rtt: vec![u32::MAX; 15],
                ..Counters::default()
            }),
            run: most,
            protocol: 1,
            remote_names: vec!["x".repeat(MAX_REMOTE_NAME_BYTES); MAX_REMOTE_NAMES],
            nat_peers: vec![NatPeer { ip: vec![1; 16], port: 65_535, opened: most }; MAX_NAT_PEERS],
            first_seen_age_ms: most,
            news_age_ms: most,
            changed_age_ms: most,
        }
    }

    #[test]
    fn largest_valid_message_passes() {
        let report = AgentReport {
            capture: Some(CaptureState::default()),
            flows: vec![largest(); MAX_FLOWS_PER_MESSAGE],
            identities: vec![Identity::default(); MAX_IDENTITIES_PER_MESSAGE],
            node_addresses: vec![vec![1; 16]; MAX_NODE_ADDRESSES],
            ..AgentReport::default()
        };
        assert_eq!(AgentReport::check(&report.encode_to_vec()), Ok(()));
    }

    #[test]
    fn empty_fields_in_great_number_are_refused_by_name() {
        let refused = |bytes: &[u8], field: &str| {
            let problem = AgentReport::check(bytes).expect_err(field);
            assert!(problem.starts_with(field), "{problem}");
        };
        let key = |number: u8| [number << 3 | 2, 0];
        refused(&key(7).repeat(1 << 20), "identities: ");
        refused(&key(8).repeat(1 << 20), "flows: ");
        refused(&key(9).repeat(1 << 20), "node_addresses: ");
        let with = |flow| AgentReport { flows: vec![Flow::default(), flow], ..AgentReport::default() }.encode_to_vec();
        refused(&with(Flow { nat_peers: vec![NatPeer::default(); 100], ..Flow::default() }), "flows[1]: ");
        refused(&with(Flow { remote_names: vec![String::new(); 100], ..Flow::default() }), "flows[1]: ");
        let rtt = Some(Counters { rtt: vec![1; 100_000], ..Counters::default() });
        refused(&with(Flow { counters: rtt, ..Flow::default() }), "flows[1]: ");
    }

    #[test]
    fn bytes_that_are_no_message_end_the_check() {
        for bytes in [&[0xff; 20][..], &[0x42, 0xff], &[0x42, 0x05, 1], &[0x0b], &[0x09, 1]] {
            assert_eq!(AgentReport::check(bytes), Ok(()));
            assert!(AgentReport::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
