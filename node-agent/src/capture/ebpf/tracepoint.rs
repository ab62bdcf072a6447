//! The programs on the tracepoint `inet_sock_set_state`: second choice and third.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{BtfTracePoint, ProgramError, ProgramFd, TracePoint},
};
use kernel_support::{KernelFeature, Reason};

use super::{
    load_errors::{describe, is_permission, load_refusal},
    object::program,
    preflight::{Environment, Lockdown},
    running_kernel::RunningKernel,
};
use crate::capture::{attach::Attach, errors::Refusal, settings::Settings};

const NAME: &str = "inet_sock_set_state";
const CATEGORY: &str = "sock";

/// Names in the object, in the order in which they have to be attached.
const COPIES: [&str; 2] = ["state_changes", "state_changes_again"];
const CLASSIC: &str = "state_changes_classic";

/// The programs that are loaded, by name.
#[derive(Debug, Default)]
pub(super) struct Tracepoint {
    loaded: Vec<&'static str>,
}

impl Tracepoint {
    /// Loads what is to be attached.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the program, or it cannot be right here.
    pub(super) fn load(
        programs: &mut Ebpf,
        attach: Attach,
        settings: &Settings,
        environment: &Environment,
    ) -> Result<Self, Refusal> {
        let mut loaded = Vec::new();
        match attach {
            Attach::SockOps => {}
            Attach::TpBtf => {
                let refusal = |error: &ProgramError| load_refusal("loading the program for the BTF tracepoint", error);
                let btf = environment
                    .attach_types
                    .to_aya()
                    .map_err(|error| load_refusal("describing the type of the tracepoint", &error))?;
                for copy in COPIES {
                    let found = program::<BtfTracePoint>(programs, copy).map_err(|error| refusal(&error))?;
                    found.load(NAME, &btf).map_err(|error| refusal(&error))?;
                    loaded.push(copy);
                    // A kernel without a count of misses has none: there a program may interrupt itself.
                    if missed(found.fd()).ok().flatten().is_none() {
                        break;
                    }
                }
            }
            Attach::Tracepoint => {
                judge_classic(environment)?;
                find_format(&settings.tracefs_paths)?;
                program::<TracePoint>(programs, CLASSIC)
                    .and_then(TracePoint::load)
                    .map_err(|error| load_refusal("loading the program for the classic tracepoint", &error))?;
                loaded.push(CLASSIC);
            }
        }
        Ok(Self { loaded })
    }

    /// From now on everything is counted, until the programs are dropped.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses it.
    pub(super) fn attach(&self, programs: &mut Ebpf) -> Result<(), Refusal> {
        for name in &self.loaded {
            if *name == CLASSIC {
                program::<TracePoint>(programs, name)
                    .and_then(|program| program.attach(CATEGORY, NAME))
                    .map_err(|error| attach_refusal(&error))?;
            } else {
                program::<BtfTracePoint>(programs, name)
                    .and_then(BtfTracePoint::attach)
                    .map_err(|error| attach_refusal(&error))?;
            }
        }
        Ok(())
    }

    /// Returns whether the capture is attached to it.
    pub(super) fn is_used(&self) -> bool {
        !self.loaded.is_empty()
    }

    /// Returns the upper bound of state changes that no copy observed: a change is missed if all copies missed it.
    pub(super) fn missed_runs(&self, programs: &mut Ebpf) -> io::Result<u64> {
        let mut least = None;
        for name in &self.loaded {
            let misses = if *name == CLASSIC {
                missed(program::<TracePoint>(programs, name).and_then(|program| program.fd()))?
            } else {
                missed(program::<BtfTracePoint>(programs, name).and_then(|program| program.fd()))?
            };
            let misses = misses.unwrap_or(0);
            least = Some(least.map_or(misses, |least: u64| least.min(misses)));
        }
        Ok(least.unwrap_or(0))
    }

    /// Returns whether the kernel reports skipped runs.
    pub(super) fn counts_misses(&self, release: &RunningKernel) -> bool {
        !self.loaded.contains(&CLASSIC) || release.has(KernelFeature::ClassicTracepointMissCount)
    }

    /// Returns the limitations of this attach type.
    pub(super) fn weakness(&self, release: &RunningKernel) -> &'static str {
        match self.loaded.as_slice() {
            [CLASSIC] if self.counts_misses(release) => {
                "its program is skipped while another run is interrupted on the same CPU by a softirq; the skipped \
                 runs are counted as lost, though not every one of them was a connection's beginning or end"
            }
            [CLASSIC] => {
                "its program is skipped while another run is interrupted on the same CPU by a softirq, and this kernel \
                 does not count how often: connections are missing, and it is not known how many"
            }
            [_] => "on this kernel it is never skipped",
            _ => {
                "its program is skipped while another run is interrupted on the same CPU by a softirq; runs that both \
                 of its copies missed are counted as lost, though not every one of them was a connection's beginning \
                 or end"
            }
        }
    }
}

/// Returns the number of skipped runs of a program; `None` if the kernel does not report it (before 5.12).
fn missed(program: Result<&ProgramFd, ProgramError>) -> io::Result<Option<u64>> {
    let fd = program.map_err(io::Error::other)?.as_fd().as_raw_fd();
    Ok(recursion_misses(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?))
}

fn recursion_misses(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

fn judge_classic(environment: &Environment) -> Result<(), Refusal> {
    if environment.lockdown == Lockdown::Confidentiality {
        return Err(Refusal {
            reason: Reason::Lockdown,
            message: String::from(
                "the kernel is locked down for confidentiality: its program, which reads the kernel's memory at will, \
                 is refused",
            ),
        });
    }
    if !environment.release.has(KernelFeature::ClassicTracepointMapUpdates) {
        return Err(Refusal {
            reason: Reason::KernelTooOld,
            message: format!(
                "kernel {} cannot allocate memory safely in a classic tracepoint's program; 6.1 can",
                environment.release.text
            ),
        });
    }
    Ok(())
}

/// Makes sure that the tracepoint's record is as the program reads it.
fn find_format(tracefs: &[PathBuf]) -> Result<(), Refusal> {
    let file = Path::new("events").join(CATEGORY).join(NAME).join("format");
    let mut errors = Vec::new();
    for path in tracefs.iter().map(|path| path.join(&file)) {
        match fs::read_to_string(&path) {
            Ok(format) if is_as_known(&format) => return Ok(()),
            Ok(_) => {
                return Err(Refusal {
                    reason: Reason::AttachFailed,
                    message: format!("{} is not laid out on this kernel as the program reads it", path.display()),
                });
            }
            Err(error) => errors.push((path, error)),
        }
    }
    Err(no_format(&errors))
}

fn no_format(errors: &[(PathBuf, io::Error)]) -> Refusal {
    // Not EACCES, which a lack of rights to the file would be.
    const EPERM: i32 = 1;
    let each: Vec<_> = errors.iter().map(|(path, error)| format!("{}: {error}", path.display())).collect();
    let (reason, hint) = if errors.iter().any(|(_, error)| error.raw_os_error() == Some(EPERM)) {
        (Reason::Lockdown, "the kernel is locked down")
    } else {
        (Reason::AttachFailed, "mount tracefs there (SYS_ADMIN), or give the container the node's")
    };
    Refusal { reason, message: format!("the tracepoint's format is not to be read ({}): {hint}", each.join(", ")) }
}

fn is_as_known(format: &str) -> bool {
    const FIELDS: [(&str, &str); 4] = [
        ("skaddr;", "offset:8;\tsize:8;"),
        ("oldstate;", "offset:16;\tsize:4;"),
        ("newstate;", "offset:20;\tsize:4;"),
        ("protocol;", "offset:30;\tsize:2;"),
    ];
    FIELDS.iter().all(|(field, place)| format.lines().any(|line| line.contains(field) && line.contains(place)))
}

fn attach_refusal(error: &ProgramError) -> Refusal {
    let hint = if is_permission(error) {
        "; perf events are forbidden here: where programs.perf_event_paranoid is above 2 they need SYS_ADMIN"
    } else {
        ""
    };
    Refusal {
        reason: Reason::AttachFailed,
        message: format!("attaching to {CATEGORY}:{NAME}: {}{hint}", describe(error)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMAT: &str = "\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
        \tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n";

    #[test]
    fn a_record_of_another_layout_is_not_read() {
        assert!(is_as_known(FORMAT));
        assert!(!is_as_known(&FORMAT.replace("offset:30;\tsize:2;", "offset:30;\tsize:1;")));
        assert!(!is_as_known(""));
    }

    #[test]
    fn a_place_without_tracefs_is_named() {
        let refusal = find_format(&[PathBuf::from("/nonexistent/tracing")]).unwrap_err();
        assert_eq!(refusal.reason, Reason::AttachFailed);
        assert!(refusal.message.contains("/nonexistent/tracing"), "{refusal}");
    }

    #[test]
    fn what_even_root_may_not_read_is_locked_down() {
        let errors = |code| [(PathBuf::from("/sys/kernel/tracing/x"), io::Error::from_raw_os_error(code))];
        assert_eq!(no_format(&errors(1)).reason, Reason::Lockdown);
        assert_eq!(no_format(&errors(13)).reason, Reason::AttachFailed);
        assert_eq!(no_format(&errors(2)).reason, Reason::AttachFailed);
    }

    #[test]
    fn misses_are_read_where_the_kernel_tells_them() {
        assert_eq!(recursion_misses("pos:\t0\nrun_cnt:\t9\nrecursion_misses:\t17\nverified_insns:\t5\n"), Some(17));
        assert_eq!(recursion_misses("pos:\t0\nrun_cnt:\t9\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics(text in "(recursion_misses:|skaddr;|\\PC|\n|\t){0,40}") {
            let _ = (recursion_misses(&text), is_as_known(&text));
        }
    }
}
