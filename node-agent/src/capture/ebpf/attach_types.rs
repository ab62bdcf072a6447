//! Types of the kernel to which programs attach. The kernel wants their IDs; aya looks these up in BTF that it has read
//! whole. It gets BTF of these types alone, with their IDs, as the kernel's own takes some 16 MiB of memory.

use aya::{Btf as AyaBtf, Endianness};

use super::btf::{Btf, FUNC, MAGIC, PTR, TYPEDEF};

/// Types by kind and name: of iterators their function, of BTF tracepoints the type of their handlers.
const TARGETS: [(u32, &str); 4] = [
    (FUNC, "bpf_iter_task_file"),
    (FUNC, "bpf_iter_task"),
    (TYPEDEF, "btf_trace_inet_sock_set_state"),
    (FUNC, "bpf_iter_bpf_prog"),
];

/// Bytes of BTF's header.
const HEADER: usize = 24;

/// IDs of the types; `None` for one that this kernel does not have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttachTypes([Option<u32>; TARGETS.len()]);

impl AttachTypes {
    /// Looks up the types.
    pub(super) fn find(btf: &Btf<'_>) -> Self {
        Self(TARGETS.map(|(kind, name)| btf.id(kind, name)))
    }

    /// Returns BTF that has these types under their IDs, and pointers to nothing under all smaller ones.
    ///
    /// # Errors
    /// Returns an error if aya refuses it.
    pub(super) fn to_aya(self) -> Result<AyaBtf, aya::BtfError> {
        AyaBtf::parse(&self.to_bytes(), Endianness::default())
    }

    fn to_bytes(self) -> Vec<u8> {
        let (mut types, mut strings) = (Vec::new(), vec![0_u8]);
        let mut found: Vec<_> =
            self.0.into_iter().zip(TARGETS).filter_map(|(id, target)| Some((id?, target))).collect();
        found.sort_unstable();
        let mut next = 1;
        for (id, (kind, name)) in found {
            let pointers = id.saturating_sub(next);
            types.extend((0..pointers).flat_map(|_| [0, PTR << 24, 0]));
            types.extend([word(strings.len()), kind << 24, 0]);
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
            next = id.saturating_add(1);
        }
        let length = word(types.len() * size_of::<u32>());
        let mut bytes = Vec::with_capacity(HEADER + types.len() * size_of::<u32>() + strings.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        // Version and flags.
        bytes.extend_from_slice(&[1, 0]);
        for header in [word(HEADER), 0, length, length, word(strings.len())].into_iter().chain(types) {
            bytes.extend_from_slice(&header.to_ne_bytes());
        }
        bytes.extend_from_slice(&strings);
        bytes
    }
}

/// Sections of BTF are shorter than 4 GiB, as their lengths are such numbers.
fn word(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn types_have_the_ids_that_the_kernel_gave_them() {
        let btf = AttachTypes([Some(9), Some(4), Some(7), Some(2)]).to_aya().unwrap();
        assert_eq!(btf.id_by_type_name_kind("bpf_iter_task_file", BtfKind::Func).unwrap(), 9);
        assert_eq!(btf.id_by_type_name_kind("bpf_iter_task", BtfKind::Func).unwrap(), 4);
        assert_eq!(btf.id_by_type_name_kind("btf_trace_inet_sock_set_state", BtfKind::Typedef).unwrap(), 7);
    }

    #[test]
    fn types_that_the_kernel_lacks_are_not_found() {
        let btf = AttachTypes([None, Some(1), None, None]).to_aya().unwrap();
        assert_eq!(btf.id_by_type_name_kind("bpf_iter_task", BtfKind::Func).unwrap(), 1);
        assert!(btf.id_by_type_name_kind("bpf_iter_task_file", BtfKind::Func).is_err());
        assert!(AttachTypes::default().to_aya().unwrap().id_by_type_name_kind("bpf_iter_task", BtfKind::Func).is_err());
    }
}
