//! Protocol between a test and the processes that it scripts.
//!
//! Each command is one line of JSON on the process's standard input, and each answer one line on its standard output.
//! The commands are typed: [`step::Step`] for sockets, [`pod::PodCommand`] for pods, [`load::LoadPlan`] for a load.
//! A command that fails, or panics, is answered with the error's text.
//!
//! The process is usually a test of the same test program. Its harness prints lines of its own, so answers are marked.

pub mod load;
pub mod pod;
pub mod step;

use std::{
    any::Any,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

use serde::{Serialize, de::DeserializeOwned};

/// Prefix of the lines that are answers.
const MARK: &str = "@ ";

/// Environment variable that is set in scripted processes alone.
const VARIABLE: &str = "SCOPEPROBE_SCRIPTED_PROCESS";

/// Answer to a command, or the text of the error.
pub type Reply<A> = Result<A, String>;

/// Returns whether this process was started by [`ScriptedProcess::start`].
#[must_use]
pub fn is_scripted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Says that the process runs, and executes the commands of standard input until it ends.
///
/// # Errors
/// Returns an error if standard input cannot be read, or standard output cannot be written.
pub fn execute_stdin<C, A, E>(execute: impl FnMut(C) -> Result<A, E>) -> io::Result<()>
where
    C: DeserializeOwned,
    A: Serialize,
    E: ToString,
{
    write_reply(&mut io::stdout(), &Ok(()))?;
    execute_all(io::stdin().lock(), io::stdout(), execute)
}

/// Executes the commands of the input until it ends, and writes an answer to each.
///
/// # Errors
/// Returns an error if the input cannot be read, or the output cannot be written.
pub fn execute_all<C, A, E>(
    input: impl BufRead,
    mut output: impl Write,
    mut execute: impl FnMut(C) -> Result<A, E>,
) -> io::Result<()>
where
    C: DeserializeOwned,
    A: Serialize,
    E: ToString,
{
    for line in input.lines() {
        let reply = match serde_json::from_str(&line?) {
            Ok(command) => catch_unwind(AssertUnwindSafe(|| execute(command).map_err(|error| error.to_string())))
                .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(panic.as_ref())))),
            Err(error) => Err(format!("cannot read the command: {error}")),
        };
        write_reply(&mut output, &reply)?;
    }
    Ok(())
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

/// Writes a command in one line.
///
/// # Errors
/// Returns an error if the process has ended.
pub fn write_command(output: &mut impl Write, command: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(command)? + "\n";
    output.write_all(line.as_bytes())?;
    output.flush()
}

fn write_reply<A: Serialize>(output: &mut impl Write, reply: &Reply<A>) -> io::Result<()> {
    // The harness may have begun a line.
    let lines = format!("\n{MARK}{}\n", serde_json::to_string(reply)?);
    output.write_all(lines.as_bytes())?;
    output.flush()
}

/// Reads lines up to the next answer, and returns it.
///
/// # Errors
/// Returns an error if the output ends before an answer, or the answer is of another type.
pub fn read_reply<A: DeserializeOwned>(input: &mut impl BufRead) -> io::Result<Reply<A>> {
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the scripted process ended without an answer"));
        }
        if let Some(reply) = line.strip_prefix(MARK) {
            return Ok(serde_json::from_str(reply)?);
        }
    }
}

/// Child process that executes commands. It is killed when this value is dropped.
#[derive(Debug)]
pub struct ScriptedProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl ScriptedProcess {
    /// Starts this test program again, for the one ignored test of this name. The command is a wrapper that runs the
    /// program given by its further arguments, such as `nsenter -t 1 -n`. Returns once the program executes commands,
    /// and thus has what the wrapper gives it.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started, or ends before the program executes commands.
    pub fn start(wrapper: Option<Command>, test: &str) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = match wrapper {
            Some(mut wrapper) => {
                wrapper.arg(program);
                wrapper
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("the process has no standard output"))?;
        let mut process = Self { input: child.stdin.take(), child, output: BufReader::new(output) };
        process.receive::<()>()?.map_err(io::Error::other)?;
        Ok(process)
    }

    /// Returns a wrapper command of these words for [`ScriptedProcess::start`]; `None` without words.
    #[must_use]
    pub fn wrapper<S: AsRef<OsStr>>(words: &[S]) -> Option<Command> {
        let (program, arguments) = words.split_first()?;
        let mut command = Command::new(program);
        command.args(arguments);
        Some(command)
    }

    /// Returns the process's ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    pub fn send(&mut self, command: &impl Serialize) -> io::Result<()> {
        let input = self.input.as_mut().ok_or_else(|| io::Error::other("the process has no standard input"))?;
        write_command(input, command)
    }

    /// Waits for the answer to the oldest command that has none yet.
    ///
    /// # Errors
    /// Returns an error if the process ends before it answers, or the answer is of another type.
    pub fn receive<A: DeserializeOwned>(&mut self) -> io::Result<Reply<A>> {
        read_reply(&mut self.output)
    }

    /// Closes the process's standard input, and returns its exit status.
    ///
    /// # Errors
    /// Returns an error if the process cannot be waited for.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        drop(self.input.take());
        self.child.wait()
    }
}

impl Drop for ScriptedProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
