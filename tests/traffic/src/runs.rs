//! Background runs, each with a number, until their result is collected.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
};

use crate::{
    program::spawn,
    protocol::{Outcome, Run},
};

/// Runs whose result was not collected yet.
#[derive(Debug, Default)]
pub struct Runs {
    next: AtomicU64,
    going: Mutex<BTreeMap<Run, Going>>,
}

#[derive(Debug)]
struct Going {
    stopped: Arc<AtomicBool>,
    outcome: mpsc::Receiver<Outcome>,
}

impl Runs {
    /// Starts a run on a thread of its own. The run polls the flag, and ends when it is set.
    ///
    /// # Errors
    /// Returns an error if no thread can be created.
    pub fn begin(&self, run: impl FnOnce(&AtomicBool) -> Outcome + Send + 'static) -> io::Result<Run> {
        let number = Run { run: self.next.fetch_add(1, Relaxed) + 1 };
        let stopped = Arc::new(AtomicBool::new(false));
        let (sender, outcome) = mpsc::channel();
        let flag = Arc::clone(&stopped);
        // The receiver ends with the program, and does not need the result then.
        spawn(move || drop(sender.send(run(&flag))))?;
        self.going.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Going { stopped, outcome });
        Ok(number)
    }

    /// Waits for the result of a run; if `stop` is true, stops it first. Returns `None` if there is no such run, or its
    /// result was collected before.
    pub fn finish(&self, run: Run, stop: bool) -> Option<Outcome> {
        let going = self.going.lock().unwrap_or_else(PoisonError::into_inner).remove(&run)?;
        going.stopped.store(stop, Relaxed);
        going.outcome.recv().ok()
    }
}

/// First of many errors.
#[derive(Debug, Default)]
pub struct FirstError(OnceLock<String>);

impl FirstError {
    /// Stores an error if it is the first.
    pub fn set(&self, error: impl FnOnce() -> String) {
        self.0.get_or_init(error);
    }

    /// Returns the first error, if any.
    #[must_use]
    pub fn take(self) -> Option<String> {
        self.0.into_inner()
    }
}
