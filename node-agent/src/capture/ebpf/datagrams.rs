//! Counts datagrams. If the kernel refuses these programs, the rest of the capture works without them.

use std::{
    collections::VecDeque,
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, RingBuf},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError,
        cgroup_sock_addr::CgroupSockAddrLinkId,
    },
};
use node_agent_common::{AnswerRecord, conversation};

use super::{
    cgroup_hooks::{Hook, own_programs},
    conversation_tables::ConversationTables,
    load_errors::describe,
    object::{program, take},
};
use crate::capture::{
    description::{Degradation, Feature},
    settings::Settings,
};
use crate::names::Answer;

/// Names in the object.
const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("datagrams_out", CgroupSkbAttachType::Egress), ("datagrams_in", CgroupSkbAttachType::Ingress)];
/// A program that records original destinations of translated datagrams, and its hook.
type OriginalDest = (&'static str, Hook);
const ORIGINAL_DESTS: [OriginalDest; 2] = [("original_dest_v4", Hook::Sendmsg4), ("original_dest_v6", Hook::Sendmsg6)];

/// Interval between recorded counts of conversations. It also prolongs the time for which a conversation counts as
/// inferred.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Programs that count datagrams.
pub(super) struct Datagrams {
    begun: Array<MapData, u64>,
    answers: RingBuf<MapData>,
    attached: Instant,
    settle: Duration,
    /// Time for which a conversation is kept.
    memory: Duration,
    tables: ConversationTables,
    /// Times and numbers of conversations that began, the oldest one `memory` ago.
    notes: VecDeque<(Instant, u64)>,
    /// Links of the programs that record original destinations, as far as the kernel accepted them.
    original_dests: Vec<(OriginalDest, CgroupSockAddrLinkId)>,
}

impl Datagrams {
    /// Loads and attaches the programs, and adds a degradation for each missing feature.
    pub(super) fn attach(
        programs: &mut Ebpf,
        settings: &Settings,
        degradations: &mut Vec<Degradation>,
    ) -> Option<Self> {
        let mut datagrams =
            Self::attach_counting(programs, settings).map_err(|degradation| degradations.push(degradation)).ok()?;
        if let Err(error) = datagrams.attach_original_destinations(programs, &settings.cgroup_root) {
            degradations.push(Degradation {
                feature: Feature::OriginalDestinations,
                message: format!(
                    "the kernel refused the programs on sendmsg(): {error}. Where the node translates addresses of its own \
                     processes (to Services), UDP of sockets that are not connected is shown with the translated ones"
                ),
            });
        }
        Some(datagrams)
    }

    fn attach_original_destinations(&mut self, programs: &mut Ebpf, cgroup_root: &Path) -> Result<(), String> {
        let directory = File::open(cgroup_root).map_err(|error| error.to_string())?;
        for original_dest in ORIGINAL_DESTS {
            let attach = |program: &mut CgroupSockAddr| {
                program.load()?;
                program.attach(&directory, CgroupAttachMode::Single)
            };
            let link = program::<CgroupSockAddr>(programs, original_dest.0).and_then(attach);
            self.original_dests.push((original_dest, link.map_err(|error| describe(&error))?));
        }
        Ok(())
    }

    /// Makes the programs that record original destinations run after those that others have attached meanwhile: NAT sees
    /// only what these make of a destination.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses that; the programs then run as before.
    pub(super) fn run_last(&mut self, programs: &mut Ebpf, cgroup_root: &Path) -> Result<(), String> {
        let directory = File::open(cgroup_root).map_err(|error| error.to_string())?;
        for ((name, hook), link) in &mut self.original_dests {
            let program = program::<CgroupSockAddr>(programs, name).map_err(|error| describe(&error))?;
            let own = program.info().map_err(|error| describe(&error))?.id();
            let attached = own_programs(&directory, *hook).map_err(|error| error.to_string())?;
            if attached.ids.last() == Some(&own) {
                continue;
            }
            let again = program.attach(&directory, CgroupAttachMode::Single).map_err(|error| describe(&error))?;
            // Afterwards, so that none goes unseen.
            program.detach(std::mem::replace(link, again)).map_err(|error| describe(&error))?;
        }
        Ok(())
    }

    fn attach_counting(programs: &mut Ebpf, settings: &Settings) -> Result<Self, Degradation> {
        let refused =
            |error: &str| Degradation { feature: Feature::Datagrams, message: format!("UDP is not counted: {error}") };
        let begun = take(programs, "BEGUN").map_err(|refusal| refused(&refusal.message))?;
        let answers = take(programs, "ANSWERS").map_err(|refusal| refused(&refusal.message))?;
        let tables = take(programs, "CONVERSATIONS").map_err(|refusal| refused(&refusal.message))?;
        let tables = ConversationTables::new(tables, settings.max_conversations).map_err(|error| {
            refused(&format!("the kernel refused the table of conversations: {}", describe(&error)))
        })?;
        attach(programs, &settings.cgroup_root).map_err(|error| {
            let root = settings.cgroup_root.display();
            refused(&format!("the kernel refused the programs for packets at the cgroup {root}: {error}"))
        })?;
        let attached = Instant::now();
        Ok(Self {
            begun,
            answers,
            attached,
            settle: settings.conversations_settle,
            memory: settings.conversation_silence,
            tables,
            notes: VecDeque::from([(attached, 0)]),
            original_dests: Vec::new(),
        })
    }

    /// Records that the first listing has shown the sockets that are older than the capture.
    pub(super) fn set_listed(&mut self) -> Result<(), MapError> {
        self.begun.set(conversation::HAS_HISTORIES, 1, 0)
    }

    /// Returns the DNS responses since the last call. Must be called after flows were read, so that the responses that
    /// led to their addresses are included.
    pub(super) fn answers(&mut self) -> Vec<(u64, Answer)> {
        let mut answers = Vec::new();
        while let Some(item) = self.answers.next() {
            answers.extend(record(&item).and_then(|(cgroup, message)| Some((cgroup, Answer::read(message)?))));
        }
        answers
    }

    /// Fits the table to the number of conversations, and sets the numbers from which on a conversation that seems to begin
    /// may be an evicted one or follow one.
    pub(super) fn judge(&mut self, now: Instant) -> Result<(), MapError> {
        let begun = self.begun.get(&conversation::BEGUN, 0)?;
        if self.notes.back().is_none_or(|(noted, _)| now.saturating_duration_since(*noted) >= NOTE_EVERY) {
            self.notes.push_back((now, begun));
        }
        let before = begun_before(&mut self.notes, now.checked_sub(self.memory));
        self.tables.fit(begun.saturating_sub(before), self.memory + NOTE_EVERY, now)?;
        self.begun.set(conversation::COMPLETE_UP_TO, self.tables.complete_up_to(), 0)?;
        if now.saturating_duration_since(self.attached) < self.settle {
            return Ok(());
        }
        self.begun.set(conversation::CERTAIN_BELOW, self.tables.room() + before, 0)
    }
}

/// Returns the number that had begun at that time, from the latest record that is old enough; removes records that are
/// not needed any more.
fn begun_before(notes: &mut VecDeque<(Instant, u64)>, then: Option<Instant>) -> u64 {
    while notes.get(1).is_some_and(|(noted, _)| then.is_some_and(|then| then >= *noted)) {
        notes.pop_front();
    }
    notes.front().map_or(0, |(_, begun)| *begun)
}

/// Returns the cgroup and the message of an [`AnswerRecord`], which ends with its message.
fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (cgroup, rest) = bytes.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    let message = bytes.get(AnswerRecord::HEAD..)?;
    Some((u64::from_ne_bytes(*cgroup), message.get(..u32::from_ne_bytes(*length) as usize)?))
}

fn attach(programs: &mut Ebpf, cgroup_root: &Path) -> Result<(), String> {
    let said = |error: &ProgramError| describe(error);
    for (name, _) in PROGRAMS {
        program::<CgroupSkb>(programs, name).and_then(CgroupSkb::load).map_err(|error| said(&error))?;
    }
    let directory = File::open(cgroup_root).map_err(|error| error.to_string())?;
    let mut attached = Vec::new();
    for (name, direction) in PROGRAMS {
        let program = program::<CgroupSkb>(programs, name).map_err(|error| said(&error))?;
        match program.attach(&directory, direction, CgroupAttachMode::Single) {
            Ok(link) => attached.push((name, link)),
            Err(error) => {
                // With one direction alone, the roles of client and server would be wrong.
                for (name, link) in attached {
                    if let Ok(program) = self::program::<CgroupSkb>(programs, name) {
                        let _ = program.detach(link);
                    }
                }
                return Err(said(&error));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_within_memory_counts_against_the_room() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut notes = VecDeque::from([(at(0), 0), (at(60), 500), (at(110), 900)]);
        assert_eq!(begun_before(&mut notes, None), 0);
        assert_eq!(begun_before(&mut notes, Some(at(59))), 0);
        assert_eq!(begun_before(&mut notes, Some(at(60))), 500, "noted when memory began");
        assert_eq!(begun_before(&mut notes, Some(at(600))), 900);
        assert_eq!(notes.len(), 1, "one is always there");
    }
}
