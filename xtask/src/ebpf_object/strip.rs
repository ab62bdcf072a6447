//! Removes from the linked object what the kernel does not need: debug information, which is most of it.

use anyhow::Context as _;
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use super::btf::of_the_maps;

/// Returns the object without debug information. Of `.BTF`, the description of the maps stays. `.BTF.ext` describes lines
/// and functions to readers of the verifier's log.
pub(super) fn stripped(object: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output is no ELF object")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        let described = name.strip_prefix(".rel").unwrap_or(&name);
        if name == ".BTF"
            && let SectionData::Data(btf) = &section.data
        {
            section.data = SectionData::Data(of_the_maps(btf)?.into());
        }
        section.delete = described.starts_with(".debug_") || described == ".BTF.ext" || name == ".rel.BTF";
    }
    builder.delete_orphans();
    // The linker keeps names of sections and of symbols in one table; the builder knows them as two.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut bytes = Vec::new();
    builder.write(&mut bytes).context("cannot write the object without debug information")?;
    Ok(bytes)
}
