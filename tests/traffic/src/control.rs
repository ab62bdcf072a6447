//! The unix socket through which commands come: one line of JSON each way, one command per connection.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    program::{Program, spawn},
    protocol::{Answer, Command},
};

/// Default path of the socket.
pub const SOCKET: &str = "/tmp/traffic.sock";

/// Maximum time from a program's start to its socket, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Answers commands until the process ends.
///
/// # Errors
/// Returns an error if the socket cannot be created.
pub fn serve(path: &Path, program: &Arc<Program>) -> io::Result<()> {
    // Left behind by a container of this pod that has ended.
    let _ = fs::remove_file(path);
    for stream in UnixListener::bind(path)?.incoming() {
        let (Ok(stream), program) = (stream, Arc::clone(program)) else { continue };
        // Who asked and went away needs no answer.
        spawn(move || drop(converse(&stream, &program)))?;
    }
    Ok(())
}

fn converse(mut stream: &UnixStream, program: &Arc<Program>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer = match Command::parse(&line) {
        Ok(command) => program.answer(command),
        Err(error) => Answer::Error(error.to_string()),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

/// Hands over a command (JSON in one line) and returns the answer's line. A program that has just started is given
/// [`PATIENCE`] to listen.
///
/// # Errors
/// Returns an error if nothing listens at the socket, or the program ends before it answers.
pub fn ask(path: &Path, command: &str) -> io::Result<String> {
    let mut stream = connect(path, Instant::now() + PATIENCE)?;
    stream.write_all(format!("{}\n", command.replace('\n', " ")).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Err(error) if may_come(&error) && Instant::now() < deadline => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// There is no socket yet, or one that a container before has left.
fn may_come(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
