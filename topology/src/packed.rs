//! Counters in few bytes: most of a flow's counters are zero or small. An agent keeps a hundred thousand flows, the operator
//! those of all agents.

use crate::{
    flow::{FlowCounters, Methods},
    rtt::{RttBucket, RttHistogram},
};
use smallvec::SmallVec;

/// Bytes that are stored in place. What most flows need fits; more goes to the heap.
const IN_PLACE: usize = 23;

/// A number takes at most 10 bytes, as does the mask before them.
const LONGEST: usize = 10 * (u64::BITS as usize + 1);

/// Up to 64 numbers, of which only those that are not zero take bytes. The same numbers have the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedNumbers(SmallVec<[u8; IN_PLACE]>);

impl PackedNumbers {
    /// Packs numbers; those that are not zero most often come first.
    #[must_use]
    pub fn pack<const N: usize>(numbers: &[u64; N]) -> Self {
        const { assert!(N <= u64::BITS as usize) };
        let mut bytes = Bytes { bytes: [0; LONGEST], length: 0 };
        let mask = (0..N).filter(|index| numbers[*index] != 0).fold(0, |mask, index| mask | 1_u64 << index);
        for number in std::iter::once(mask).filter(|mask| *mask != 0).chain(numbers.iter().copied().filter(|n| *n != 0))
        {
            bytes.push(number);
        }
        Self(SmallVec::from_slice(&bytes.bytes[..bytes.length]))
    }

    /// The numbers.
    #[must_use]
    pub fn unpack<const N: usize>(&self) -> [u64; N] {
        let mut bytes = self.0.iter().copied();
        let mask = read(&mut bytes);
        std::array::from_fn(|index| if mask >> index & 1 == 1 { read(&mut bytes) } else { 0 })
    }
}

/// Numbers as little-endian groups of seven bits, of which all but the last have the eighth bit.
struct Bytes {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Bytes {
    fn push(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            self.bytes[self.length] = if number == 0 { low } else { low | 0x80 };
            self.length += 1;
            if number == 0 {
                return;
            }
        }
    }
}

fn read(bytes: &mut impl Iterator<Item = u8>) -> u64 {
    let mut number = 0;
    for (shift, byte) in (0..u64::BITS).step_by(7).zip(bytes) {
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// Numbers of [`FlowCounters`] beside the histogram: its counts, and methods, run and retransmits.
const PLAIN: usize = FlowCounters::GROWING + FlowCounters::OPEN + 3;

/// A flow's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedCounters(PackedNumbers);

impl From<&FlowCounters> for PackedCounters {
    fn from(counters: &FlowCounters) -> Self {
        let others = [
            u64::from(counters.methods.bits()) << 1 | u64::from(counters.retransmits.is_some()),
            counters.run,
            counters.retransmits.unwrap_or_default(),
        ];
        let mut counters = *counters;
        let (growing, open) = counters.counts_mut();
        let plain = growing.into_iter().chain(open).map(|count| *count).chain(others);
        let mut numbers = [0; PLAIN + RttBucket::COUNT];
        numbers.iter_mut().zip(plain).for_each(|(number, plain)| *number = plain);
        pack_histogram(&counters.rtt, &mut numbers[PLAIN..]);
        Self(PackedNumbers::pack(&numbers))
    }
}

impl From<&PackedCounters> for FlowCounters {
    fn from(packed: &PackedCounters) -> Self {
        let numbers = packed.0.unpack::<{ PLAIN + RttBucket::COUNT }>();
        let mut plain = numbers.iter().copied();
        let mut next = || plain.next().unwrap_or_default();
        // In the order in which they were packed.
        let mut counters = Self { rtt: unpack_histogram(&numbers[PLAIN..]), ..Self::default() };
        let (growing, open) = counters.counts_mut();
        growing.into_iter().chain(open).for_each(|count| *count = next());
        let methods = next();
        let knows_retransmits = methods & 1 == 1;
        Self {
            // The bits come from a set.
            methods: u32::try_from(methods >> 1).ok().and_then(Methods::from_bits).unwrap_or_default(),
            run: next(),
            retransmits: Some(next()).filter(|_| knows_retransmits),
            ..counters
        }
    }
}

/// Writes a histogram's counts.
pub fn pack_histogram(histogram: &RttHistogram, numbers: &mut [u64]) {
    for (number, count) in numbers.iter_mut().zip(histogram.counts()) {
        *number = (*count).into();
    }
}

/// Reads what [`pack_histogram`] has written.
#[must_use]
pub fn unpack_histogram(numbers: &[u64]) -> RttHistogram {
    let mut counts = [0; RttBucket::COUNT];
    for (count, number) in counts.iter_mut().zip(numbers) {
        // They come from counts of 32 bits.
        *count = u32::try_from(*number).unwrap_or(u32::MAX);
    }
    // As many as there are buckets.
    RttHistogram::from_counts(&counts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![4 => Just(0), 2 => 0..200_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
    }

    proptest! {
        #[test]
        fn numbers_survive_packing(numbers in prop::array::uniform32(number())) {
            let packed = PackedNumbers::pack(&numbers);
            prop_assert_eq!(packed.unpack::<32>(), numbers);
        }

        #[test]
        fn counters_survive_packing(
            plain in prop::array::uniform32(number()),
            methods in 0_u32..16,
            knows_retransmits in any::<bool>(),
            rtt in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u32>()], 0..=RttBucket::COUNT),
        ) {
            let counters = FlowCounters {
                run: plain[0],
                opened: plain[1],
                closed: plain[2],
                failed: plain[3],
                preexisting: plain[4],
                bytes_sent: plain[5],
                bytes_received: plain[6],
                preexisting_bytes_sent: plain[7],
                preexisting_bytes_received: plain[8],
                open_bytes_sent: plain[9],
                open_bytes_received: plain[10],
                methods: Methods::from_bits(methods).unwrap(),
                inferred: plain[11],
                without_bytes: plain[12],
                open_without_bytes: plain[13],
                retransmits: knows_retransmits.then_some(plain[14]),
                preexisting_retransmits: plain[15],
                open_retransmits: plain[16],
                pending_begun: plain[17],
                pending_ended: plain[18],
                rtt: RttHistogram::from_counts(&rtt).unwrap(),
            };
            prop_assert_eq!(FlowCounters::from(&PackedCounters::from(&counters)), counters);
        }
    }

    #[test]
    fn counters_of_a_usual_flow_stay_in_place() {
        let mut rtt = RttHistogram::default();
        rtt.add(RttBucket::of(900));
        let counters = FlowCounters {
            run: 100_000,
            opened: 300,
            closed: 300,
            bytes_sent: 1_000_000,
            bytes_received: 30_000_000,
            methods: Methods::EBPF,
            retransmits: Some(3),
            rtt,
            ..FlowCounters::default()
        };
        let PackedCounters(PackedNumbers(bytes)) = PackedCounters::from(&counters);
        assert!(!bytes.spilled(), "{} bytes", bytes.len());
        assert_eq!(size_of::<PackedCounters>(), 32);
    }
}
