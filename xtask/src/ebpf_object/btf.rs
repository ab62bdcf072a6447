//! Reduces the BTF of the linked object to the types that describe its maps. What else the compiler says, such as lines of
//! the sources and paths on the machine, the kernel does not need.
//!
//! Format: Documentation/bpf/btf.rst of the kernel.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};

/// Section of the maps, and name of the type that lists them.
const MAPS: &str = ".maps";

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Length of the header, in bytes.
const HEADER: u32 = 24;
const WORD: usize = 4;

/// A type: three words, and those that its kind adds.
#[derive(Clone)]
struct Type {
    words: Vec<u32>,
}

/// Meaning of a word of a type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Offset of a name.
    Name,
    /// ID of a type; 0 is `void`.
    Reference,
    Number,
}

impl Type {
    const HEAD: usize = 3;

    /// Returns the number of words of a type with this second word.
    fn length(info: u32) -> anyhow::Result<usize> {
        let count = (info & 0xffff) as usize;
        let body = match kind(info) {
            // Pointer, forward, typedef, qualifiers, function, float, type tag.
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, declaration tag.
            1 | 14 | 17 => 1,
            // Array.
            3 => 3,
            // Enumeration, prototype.
            6 | 13 => 2 * count,
            // Structure, union, section, enumeration of 64 bits.
            4 | 5 | 15 | 19 => 3 * count,
            other => bail!("BTF of the unknown kind {other}"),
        };
        Ok(Self::HEAD + body)
    }

    fn meaning(&self, index: usize) -> Meaning {
        let body = index.checked_sub(Self::HEAD);
        let in_pairs = |first, second| if body.is_some_and(|at| at % 2 == 0) { first } else { second };
        let in_threes = |meanings: [Meaning; 3]| body.map_or(Meaning::Number, |at| meanings[at % 3]);
        match (kind(self.words[1]), index) {
            (_, 0) => Meaning::Name,
            (2 | 8..=14 | 17 | 18, 2) | (3, 3 | 4) => Meaning::Reference,
            (_, 1 | 2) => Meaning::Number,
            (4 | 5, _) => in_threes([Meaning::Name, Meaning::Reference, Meaning::Number]),
            (6, _) => in_pairs(Meaning::Name, Meaning::Number),
            (13, _) => in_pairs(Meaning::Name, Meaning::Reference),
            (15, _) => in_threes([Meaning::Reference, Meaning::Number, Meaning::Number]),
            (19, _) => in_threes([Meaning::Name, Meaning::Number, Meaning::Number]),
            _ => Meaning::Number,
        }
    }

    fn with(&self, mut map: impl FnMut(Meaning, u32) -> u32) -> Self {
        let words = self.words.iter().enumerate().map(|(index, word)| map(self.meaning(index), *word));
        Self { words: words.collect() }
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Returns BTF of the types that the maps' section leads to, with new IDs.
pub(super) fn of_the_maps(btf: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (types, strings) = parse(btf)?;
    let is_maps = |found: &&Type| kind(found.words[1]) == 15 && name(strings, found.words[0]) == MAPS.as_bytes();
    let section = types.iter().position(|found| is_maps(&found)).context("the object's BTF describes no maps")?;
    let ids: BTreeMap<u32, u32> =
        (0..).zip([0].into_iter().chain(reachable(&types, section)?)).map(|(new, old)| (old, new)).collect();
    let mut texts = vec![0_u8];
    let mut written = Vec::new();
    for old in ids.keys().skip(1) {
        let found = types[*old as usize - 1].with(|meaning, word| match meaning {
            Meaning::Name if word != 0 => {
                let at = length(&texts);
                texts.extend_from_slice(name(strings, word));
                texts.push(0);
                at
            }
            Meaning::Reference => ids[&word],
            Meaning::Name | Meaning::Number => word,
        });
        written.extend(found.words.iter().flat_map(|word| word.to_le_bytes()));
    }
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend([VERSION, 0]);
    for word in [HEADER, 0, length(&written), length(&written), length(&texts)] {
        bytes.extend(word.to_le_bytes());
    }
    Ok([bytes, written, texts].concat())
}

fn reachable(types: &[Type], section: usize) -> anyhow::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut open = vec![u32::try_from(section)? + 1];
    while let Some(id) = open.pop() {
        if id == 0 || !found.insert(id) {
            continue;
        }
        let reached = types.get(id as usize - 1).with_context(|| format!("BTF without a type {id}"))?;
        let references = (0..reached.words.len()).filter(|index| reached.meaning(*index) == Meaning::Reference);
        open.extend(references.map(|index| reached.words[index]));
    }
    Ok(found)
}

fn parse(btf: &[u8]) -> anyhow::Result<(Vec<Type>, &[u8])> {
    if btf.get(..2) != Some(&MAGIC.to_le_bytes()) {
        bail!("the object has no BTF");
    }
    let types = section(btf, word(btf, 8)?, word(btf, 12)?)?;
    let strings = section(btf, word(btf, 16)?, word(btf, 20)?)?;
    let mut found = Vec::new();
    let mut at = 0;
    while at < types.len() {
        let words = Type::length(word(types, at + WORD)?)?;
        let words = (0..words).map(|index| word(types, at + WORD * index)).collect::<anyhow::Result<Vec<_>>>()?;
        at += WORD * words.len();
        found.push(Type { words });
    }
    Ok((found, strings))
}

fn section(btf: &[u8], offset: u32, length: u32) -> anyhow::Result<&[u8]> {
    let begin = word(btf, 4)? as usize + offset as usize;
    btf.get(begin..begin + length as usize).context("BTF is cut off")
}

fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("BTF is cut off")?;
    Ok(u32::from_le_bytes(*word))
}

fn name(strings: &[u8], offset: u32) -> &[u8] {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    rest.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Length in bytes. Lengths of BTF have 32 bits, and what is written is shorter than what was read.
#[expect(clippy::cast_possible_truncation, reason = "see above")]
fn length(bytes: &[u8]) -> u32 {
    bytes.len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int`, a structure that no map leads to, one that the map `M` is, and the section with `M`.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut name = |text: &str| {
            let at = length(&strings);
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let types = [
            vec![name("/a/path.rs"), 4 << 24 | 1, 4, name("unused"), 2, 0],
            vec![name("int"), 1 << 24, 4, 32],
            vec![name("map"), 4 << 24 | 1, 8, name("key"), 4, 0],
            vec![0, 2 << 24, 2],
            vec![name("M"), 14 << 24, 3, 1],
            vec![name(MAPS), 15 << 24 | 1, 8, 5, 0, 8],
        ];
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut btf = MAGIC.to_le_bytes().to_vec();
        btf.extend([VERSION, 0]);
        for word in [HEADER, 0, length(&types), length(&types), length(&strings)] {
            btf.extend(word.to_le_bytes());
        }
        [btf, types, strings].concat()
    }

    #[test]
    fn only_types_of_maps_remain() {
        let reduced = of_the_maps(&sample()).unwrap();
        let (types, strings) = parse(&reduced).unwrap();
        let named: Vec<_> = types.iter().map(|found| String::from_utf8_lossy(name(strings, found.words[0]))).collect();
        assert_eq!(named, ["int", "map", "", "M", MAPS]);
        assert_eq!((types[1].words[4], types[2].words[2], types[3].words[2], types[4].words[3]), (3, 1, 2, 4));
        assert!(!String::from_utf8_lossy(&reduced).contains("path"));
        assert_eq!(of_the_maps(&reduced).unwrap(), reduced);
    }

    #[test]
    fn cut_off_btf_is_refused() {
        let whole = sample();
        for end in 0..whole.len() - 1 {
            assert!(of_the_maps(&whole[..end]).is_err(), "{end}");
        }
    }
}
