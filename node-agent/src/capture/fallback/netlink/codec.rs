//! Netlink's framing: messages in a datagram, attributes in a message. Borrows, allocates nothing, never panics.
//!
//! Own codec, since a scan reads tens of thousands of sockets. The crates for `sock_diag` and netfilter allocate owned
//! attributes for each, and the one for `sock_diag` does not know the cgroup attribute.

/// Length of `struct nlmsghdr`.
pub(in crate::capture::fallback) const HEADER: usize = 16;

/// Types of messages that any netlink protocol has.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The length's bits that are not flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// `NLM_F_DUMP_INTR`: something changed while the kernel was listing.
const DUMP_INTERRUPTED: u16 = 0x10;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum Message<'a> {
    /// Of the protocol.
    Data { kind: u16, flags: u16, body: &'a [u8] },
    /// A dump has ended.
    Done { interrupted: bool },
    /// Refused, with the error's number; 0 is an acknowledgement.
    Error(i32),
}

/// The messages of a datagram, as far as they are whole.
pub(in crate::capture::fallback) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let (kind, flags) = (u16_at(datagram, 4)?, u16_at(datagram, 6)?);
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(match kind {
            ERROR => Message::Error(u32_at(body, 0).map_or(0, |number| number.cast_signed().wrapping_neg())),
            // A dump that has failed half-way says so in its end.
            DONE => match u32_at(body, 0).map_or(0, u32::cast_signed) {
                error if error < 0 => Message::Error(error.wrapping_neg()),
                _ => Message::Done { interrupted: flags & DUMP_INTERRUPTED != 0 },
            },
            _ => Message::Data { kind, flags, body },
        })
    })
}

/// The attributes in a message's body or in another attribute, as far as they are whole.
pub(in crate::capture::fallback) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A request to list something.
pub(in crate::capture::fallback) fn dump_request(kind: u16, body: &[u8]) -> Vec<u8> {
    /// `NLM_F_REQUEST | NLM_F_DUMP`.
    const FLAGS: u16 = 0x301;
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    // Sequence number and port: one request at a time, and the kernel knows who asks.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// A number of the machine's own byte order.
pub(in crate::capture::fallback) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// See [`u16_at`].
pub(in crate::capture::fallback) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// See [`u16_at`].
pub(in crate::capture::fallback) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
pub(in crate::capture::fallback) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::capture::fallback) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    pub(in crate::capture::fallback) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn a_datagram_of_several_messages_is_taken_apart() {
        let mut datagram = message(20, 2, b"12345");
        datagram.extend(message(20, 0, b""));
        datagram.extend(message(DONE, DUMP_INTERRUPTED, &0_i32.to_ne_bytes()));
        let found: Vec<_> = messages(&datagram).collect();
        let expected = [
            Message::Data { kind: 20, flags: 2, body: b"12345" },
            Message::Data { kind: 20, flags: 0, body: b"" },
            Message::Done { interrupted: true },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn errors_come_in_two_shapes() {
        let refused = message(ERROR, 0, &(-1_i32).to_ne_bytes());
        assert_eq!(messages(&refused).collect::<Vec<_>>(), [Message::Error(1)]);
        let failed = message(DONE, 0, &(-13_i32).to_ne_bytes());
        assert_eq!(messages(&failed).collect::<Vec<_>>(), [Message::Error(13)]);
    }

    proptest! {
        #[test]
        fn attributes_survive_the_way_there_and_back(
            wanted in prop::collection::vec((0..TYPE_MASK, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let bytes: Vec<u8> = wanted.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
            let found: Vec<_> = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(found, wanted);
        }

        /// Any bytes end: each step takes some of them.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
