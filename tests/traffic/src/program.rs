//! The program's state and what it does at each command.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    client,
    counts::Counts,
    datagrams::{self, Echoes},
    held::Held,
    names,
    protocol::{Answer, Command, Connect, Report, Run},
    runs::Runs,
    server::Listeners,
};

/// Room for two buffers of a conversation; thousands of threads cost little.
const STACK: usize = 128 * 1024;

/// Starts a thread with a small stack.
///
/// # Errors
/// Returns an error if no thread can be created.
pub fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(run).map(drop)
}

/// Starts a thread with a small stack in a scope.
///
/// # Errors
/// Returns an error if no thread can be created.
pub fn spawn_scoped<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    run: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run).map(drop)
}

/// Lets this process have as many descriptors as the system allows it.
///
/// # Errors
/// Those of the system calls.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Everything that outlives a command.
#[derive(Debug, Default)]
pub struct Program {
    counts: Arc<Counts>,
    listeners: Listeners,
    echoes: Echoes,
    held: Held,
    runs: Runs,
}

impl Program {
    /// Carries out a command.
    pub fn answer(self: &Arc<Self>, command: Command) -> Answer {
        match command {
            Command::Ping => Answer::Done,
            Command::Listen(listen) => match self.listeners.listen(&listen, &self.counts) {
                Ok(address) => Answer::Listening(address),
                Err(error) => Answer::Error(format!("cannot listen at {}: {error}", listen.address)),
            },
            Command::Unlisten(unlisten) => match self.listeners.unlisten(unlisten.address) {
                Ok(true) => Answer::Done,
                Ok(false) => Answer::Error(format!("no listener at {}", unlisten.address)),
                Err(error) => Answer::Error(format!("cannot stop to listen at {}: {error}", unlisten.address)),
            },
            Command::Echo(echo) => match self.echoes.serve(echo.address) {
                Ok(address) => Answer::Listening(address),
                Err(error) => Answer::Error(format!("cannot echo at {}: {error}", echo.address)),
            },
            Command::Datagrams(plan) => Answer::Outcome(datagrams::ask(&plan)),
            Command::NameServer(server) => match names::serve(&server) {
                Ok(address) => Answer::Listening(address),
                Err(error) => Answer::Error(format!("cannot answer for names at {}: {error}", server.address)),
            },
            Command::Resolve(resolve) => match names::resolve(&resolve.name) {
                Ok(addresses) => Answer::Addresses(addresses),
                Err(error) => Answer::Error(format!("cannot resolve {:?}: {error}", resolve.name)),
            },
            Command::Connect(plan) => self.connect(plan),
            Command::Await(run) => self.finish(run, false),
            Command::Stop(run) => self.finish(run, true),
            Command::Exchange(exchange) => Answer::Outcome(self.held.exchange(&exchange)),
            Command::Close(close) => Answer::Outcome(self.held.close(&close)),
            Command::Report => Answer::Report(Report { echoes: self.echoes.report(), ..self.counts.report() }),
        }
    }

    fn connect(self: &Arc<Self>, plan: Connect) -> Answer {
        if !plan.background {
            return Answer::Outcome(client::run(&plan, &self.counts, &self.held, &AtomicBool::new(false)));
        }
        let program = Arc::clone(self);
        match self.runs.begin(move |stopped| client::run(&plan, &program.counts, &program.held, stopped)) {
            Ok(run) => Answer::Running(run),
            Err(error) => Answer::Error(format!("cannot begin a run in the background: {error}")),
        }
    }

    fn finish(&self, run: Run, stop: bool) -> Answer {
        match self.runs.finish(run, stop) {
            Some(outcome) => Answer::Outcome(outcome),
            None => Answer::Error(format!("there is no run {}, or its outcome was already taken", run.run)),
        }
    }
}
