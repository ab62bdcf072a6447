//! Programs and maps of the compiled object, by name.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{Map, MapError},
    programs::ProgramError,
};

use super::load_errors::{incomplete, load_refusal};
use crate::capture::errors::Refusal;

/// Pause before what the programs have noted is read, or who of them counts is changed. Connections that are being
/// established or counted are complete by then.
pub(super) const SETTLE: Duration = Duration::from_millis(20);

/// Returns a program of the object.
///
/// # Errors
/// Returns an error if the object has no program of this name and type.
pub(super) fn program<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    programs.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// Takes a map out of the object.
///
/// # Errors
/// Returns an error if the object has no map of this name and type.
pub(super) fn take<M>(programs: &mut Ebpf, name: &str) -> Result<M, Refusal>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = programs.take_map(name).ok_or_else(|| incomplete(&format!("the map {name}")))?;
    map.try_into().map_err(|error: MapError| load_refusal("opening the maps", &error))
}
