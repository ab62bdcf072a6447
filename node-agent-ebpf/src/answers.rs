//! Passes DNS responses to the agent: clients get the addresses that they call next from them.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::bpf_skb_load_bytes,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use node_agent_common::{AnswerRecord, Loss};

use crate::flows::lose;

/// 1 where they are wanted. Written by the agent before the programs are loaded, then frozen.
#[unsafe(no_mangle)]
static WANTS_ANSWERS: u32 = 0;

/// The agent sets the size when it loads it.
#[map(name = "ANSWERS")]
static ANSWERS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Buffer in which a record is assembled. Packets arrive in softirqs, of which one runs per CPU at a time.
#[map(name = "ANSWER")]
static ANSWER: PerCpuArray<AnswerRecord> = PerCpuArray::with_max_entries(1, 0);

/// The port of name servers.
pub const DOMAIN: u16 = 53;

/// Of a message (RFC 1035, 4.1.1).
const HEADER: u32 = 12;
const MOST: u32 = AnswerRecord::MOST as u32;
/// Wakes no reader: the agent reads when it has something else to read.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// Passes a datagram for a socket of this cgroup to the agent if it is a DNS response with answers. Its payload begins
/// at `offset`.
#[inline(always)]
pub fn pass_on(packet: *mut __sk_buff, offset: u32, payload: u64, cgroup: u64) {
    // SAFETY: a static that is frozen before the program is loaded.
    if unsafe { core::ptr::read_volatile(&raw const WANTS_ANSWERS) } == 0 || payload < u64::from(HEADER) {
        return;
    }
    let mut header = [0_u8; HEADER as usize];
    // SAFETY: memory of that size.
    let read = unsafe { bpf_skb_load_bytes(packet.cast(), offset, (&raw mut header).cast(), HEADER) };
    // A response without an error that has answers.
    if read != 0 || header[2] & 0x80 == 0 || header[3] & 0x0f != 0 || (header[6] | header[7]) == 0 {
        return;
    }
    let Some(record) = ANSWER.get_ptr_mut(0) else { return };
    let wanted = if payload > u64::from(MOST) { MOST } else { payload as u32 };
    // Volatile, and in this form, so that the compiler keeps what the verifier wants to see: from 1 to MOST.
    // SAFETY: a local.
    let length = (unsafe { core::ptr::read_volatile(&raw const wanted) }.wrapping_sub(1) & (MOST - 1)) + 1;
    // SAFETY: this processor's value of the map, and memory of that size in it.
    unsafe {
        (*record).cgroup = cgroup;
        (*record).length = length;
        (*record).whole = payload as u32;
        let to = (&raw mut (*record).message).cast();
        if bpf_skb_load_bytes(packet.cast(), offset, to, length) != 0 {
            return;
        }
        let bytes = core::slice::from_raw_parts(record.cast::<u8>(), AnswerRecord::HEAD + length as usize);
        if ANSWERS.output::<[u8]>(bytes, BPF_RB_NO_WAKEUP).is_err() {
            lose(Loss::Answer);
        }
    }
}
