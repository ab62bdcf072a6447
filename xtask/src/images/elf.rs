//! Programs in the Executable and Linkable Format.

use object::{
    Endianness, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

/// Returns the processor of a 64-bit program (`e_machine`).
pub fn machine(program: &[u8]) -> object::Result<u16> {
    let header = elf::FileHeader64::<Endianness>::parse(program)?;
    Ok(header.e_machine(header.endian()?))
}

/// Returns whether a 64-bit program names no loader (`PT_INTERP`).
pub fn is_static(program: &[u8]) -> object::Result<bool> {
    let header = elf::FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    let headers = header.program_headers(endian, program)?;
    Ok(headers.iter().all(|header| header.p_type(endian) != elf::PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a little-endian program of 64 bits with one program header.
    fn program(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[18] = 183; // e_machine: EM_AARCH64
        bytes[20] = 1; // e_version
        bytes[32] = 64; // e_phoff: after the file's header
        bytes[52] = 64; // e_ehsize
        bytes[54] = 56; // e_phentsize
        bytes[56] = 1; // e_phnum
        bytes[64] = kind;
        bytes
    }

    #[test]
    fn program_with_a_loader_is_not_static() {
        assert_eq!(is_static(&program(1)), Ok(true), "PT_LOAD");
        assert_eq!(is_static(&program(3)), Ok(false), "PT_INTERP");
    }

    #[test]
    fn processor_is_that_of_the_header() {
        assert_eq!(machine(&program(1)), Ok(elf::EM_AARCH64));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(is_static(b"#!/bin/sh\n").is_err());
        let mut cut = program(1);
        cut.truncate(100);
        assert!(is_static(&cut).is_err());
    }
}
