//! A reader of BTF, the kernel's description of its own types: where a field is, what an enumerator's value is.
//!
//! The input is checked wherever it is read: nothing in it makes this code panic, loop or use memory without bound.
//! Format: Documentation/bpf/btf.rst of the kernel.

use std::collections::HashMap;

/// Deeper nesting of anonymous members, and longer chains of typedefs, are not followed: neither exists, except in
/// broken input, where they may be circles.
const DEPTH: u32 = 16;

/// The programs run on 64-bit kernels only.
const POINTER: u32 = 8;

/// First bytes of BTF.
pub(super) const MAGIC: u16 = 0xeb9f;

/// Kinds of types that other files name.
pub(super) use kind::{FUNC, PTR, TYPEDEF};

/// Why some bytes are no BTF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The first bytes are not those of BTF in this machine's byte order.
    #[error("it does not begin as BTF does")]
    NotBtf,
    /// It ends before it should.
    #[error("it is cut off at byte {0}")]
    Truncated(usize),
    /// A kind of type that did not exist when this was written; its size is not known, nor what comes after it.
    #[error("it has a type of the unknown kind {0}")]
    UnknownKind(u32),
    /// A type or field that is not there.
    #[error("it has no {0}")]
    Missing(String),
    /// A field that is not what it used to be.
    #[error("{0} is not {1} bytes wide at a whole byte")]
    Changed(String, u32),
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, enumerators, parameters.
    count: u32,
    /// True if members' offsets also contain a width.
    bit_fields: bool,
    /// Size, or the id of the type that this one refers to.
    size_or_target: u32,
    /// Offset of the section after the header.
    body: usize,
}

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Bytes that follow a type's header.
fn body_size(kind: u32, count: u32) -> Option<u32> {
    match kind {
        2 | 7..=12 | 16 | 18 => Some(0),
        1 | 14 | 17 => Some(4),
        3 => Some(12),
        6 | 13 => Some(8 * count),
        4 | 5 | 15 | 19 => Some(12 * count),
        _ => None,
    }
}

/// Types by name.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; the first one has ID 1.
    begins: Vec<u32>,
    /// Ids of structures and enumerations.
    named: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Takes in what `/sys/kernel/btf/vmlinux` holds.
    ///
    /// # Errors
    /// Returns an error if the bytes are not BTF, are truncated, or are of a newer version.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::NotBtf);
        }
        let header = word(bytes, 4)?;
        let mut btf = Self {
            types: section(bytes, header, word(bytes, 8)?, word(bytes, 12)?)?,
            strings: section(bytes, header, word(bytes, 16)?, word(bytes, 20)?)?,
            begins: Vec::new(),
            named: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        while at < self.types.len() {
            let found = read_type(self.types, at)?;
            let id = u32::try_from(self.begins.len() + 1).map_err(|_| BtfError::Truncated(at))?;
            self.begins.push(u32::try_from(at).map_err(|_| BtfError::Truncated(at))?);
            if matches!(found.kind, kind::STRUCT | kind::ENUM | kind::ENUM64) && found.name != 0 {
                let name = self.name(found.name);
                self.named.entry(name).or_insert(id);
            }
            let body = body_size(found.kind, found.count).ok_or(BtfError::UnknownKind(found.kind))?;
            at = found.body + body as usize;
        }
        Ok(())
    }

    /// Returns the ID of the first type of this kind and name.
    pub fn id(&self, kind: u32, name: &str) -> Option<u32> {
        let is_it = |begin: &u32| {
            let found = read_type(self.types, *begin as usize);
            found.is_ok_and(|found| found.kind == kind && self.name(found.name) == name.as_bytes())
        };
        let index = self.begins.iter().position(is_it)?;
        u32::try_from(index + 1).ok()
    }

    /// The byte offset of a field, `a.b.c` for one inside of others; members of anonymous members count as members.
    /// `size` is how wide it has to be.
    ///
    /// # Errors
    /// Returns an error if there is no such field, or it has another width.
    pub fn offset(&self, structure: &str, path: &str, size: u32) -> Result<u32, BtfError> {
        let (bits, id) = self.find(structure, path)?;
        if !bits.is_multiple_of(8) || self.size(id) != Some(size) {
            return Err(BtfError::Changed(format!("{structure}.{path}"), size));
        }
        Ok(bits / 8)
    }

    /// Returns the offset in bits of a bit of a field, which may be a bit field: eight times its byte's offset, plus the
    /// number of the bit in it.
    ///
    /// # Errors
    /// Returns an error if there is no such field, or it is a bit field on a big-endian machine, which numbers bits otherwise.
    pub fn bit(&self, structure: &str, path: &str, bit: u32) -> Result<u32, BtfError> {
        let (bits, _) = self.find(structure, path)?;
        if cfg!(target_endian = "big") && !bits.is_multiple_of(8) {
            return Err(BtfError::Changed(format!("{structure}.{path}"), 1));
        }
        bits.checked_add(bit).ok_or_else(|| BtfError::Missing(format!("{structure}.{path}")))
    }

    /// Returns the offset in bits and the type of a field: see [`Btf::offset`].
    fn find(&self, structure: &str, path: &str) -> Result<(u32, u32), BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let mut id = *self.named.get(structure.as_bytes()).ok_or_else(missing)?;
        let mut bits = 0_u32;
        for name in path.split('.') {
            let (offset, field) = self.member(id, name.as_bytes(), DEPTH).ok_or_else(missing)?;
            bits = bits.checked_add(offset).ok_or_else(missing)?;
            id = field;
        }
        Ok((bits, id))
    }

    /// The value of an enumerator of a named enumeration.
    ///
    /// # Errors
    /// Returns an error if there is no such enumerator.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{name} of enum {enumeration}"));
        let id = *self.named.get(enumeration.as_bytes()).ok_or_else(missing)?;
        let found = self.by_id(id).ok_or_else(missing)?;
        let step = if found.kind == kind::ENUM64 { 12 } else { 8 };
        (0..found.count as usize)
            .map(|index| found.body + index * step)
            .find(|at| word(self.types, *at).is_ok_and(|found| self.name(found) == name.as_bytes()))
            .and_then(|at| word(self.types, at + 4).ok())
            .ok_or_else(missing)
    }

    /// Offset in bits and type of a member.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let found = self.by_id(self.resolve(id)?)?;
        if depth == 0 || !matches!(found.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..found.count as usize).find_map(|index| {
            let at = found.body + 12 * index;
            let (member, of) = (word(self.types, at).ok()?, word(self.types, at + 4).ok()?);
            let offset = word(self.types, at + 8).ok()?;
            let offset = if found.bit_fields { offset & 0x00ff_ffff } else { offset };
            if member != 0 {
                return (self.name(member) == name).then_some((offset, of));
            }
            let (inner, of) = self.member(of, name, depth - 1)?;
            Some((offset.checked_add(inner)?, of))
        })
    }

    fn size(&self, id: u32) -> Option<u32> {
        let found = self.by_id(self.resolve(id)?)?;
        match found.kind {
            kind::PTR => Some(POINTER),
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => Some(found.size_or_target),
            _ => None,
        }
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let found = self.by_id(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.size_or_target;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let begin = *self.begins.get((id as usize).checked_sub(1)?)?;
        read_type(self.types, begin as usize).ok()
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        &rest[..end]
    }
}

fn read_type(types: &[u8], at: usize) -> Result<Type, BtfError> {
    let info = word(types, at + 4)?;
    let found = Type {
        name: word(types, at)?,
        kind: info >> 24 & 0x1f,
        count: info & 0xffff,
        bit_fields: info >> 31 == 1,
        size_or_target: word(types, at + 8)?,
        body: at + 12,
    };
    Ok(found)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    found.map(|word| u32::from_ne_bytes(*word)).ok_or(BtfError::Truncated(at))
}

fn section(bytes: &[u8], header: u32, offset: u32, length: u32) -> Result<&[u8], BtfError> {
    let begin = header as usize + offset as usize;
    bytes.get(begin..begin + length as usize).ok_or(BtfError::Truncated(bytes.len()))
}
