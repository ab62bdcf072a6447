//! The process that holds a pod's namespaces in the test cluster: waits, reaps what it inherits, ends when told to.
#![forbid(unsafe_code)]

use nix::sys::{
    signal::{SigSet, Signal},
    wait::{WaitPidFlag, WaitStatus, waitpid},
};

fn main() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }
    Ok(())
}
