//! `watch`: a table of edges in the terminal that follows the cluster.

mod feed;
mod screen;
mod state;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _},
    thread,
};

use anyhow::{Context as _, Result, bail};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use self::{
    feed::Feed,
    state::{State, Step},
};
use crate::{cli::Selection, source::Source};

/// Shows the table until the person or a signal ends it.
///
/// # Errors
/// Returns an error if there is no terminal, or no cluster.
pub async fn watch(source: &Source, selection: &Selection) -> Result<()> {
    if source.is_of_files() {
        bail!("`watch` follows a cluster; `table` shows files");
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("`watch` needs a terminal; `table` writes to pipes and files");
    }
    let feed = Feed::start(source, selection).await?;
    // It restores the terminal on a panic as well.
    let terminal = ratatui::try_init().context("the terminal")?;
    let outcome = run(terminal, feed).await;
    ratatui::restore();
    outcome
}

async fn run(mut terminal: DefaultTerminal, mut feed: Feed) -> Result<()> {
    let mut keys = keys();
    let mut signals = signals()?;
    let [terminate, hang_up, interrupt] = &mut signals;
    let mut state = State::default();
    let has_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    loop {
        terminal.draw(|frame| screen::draw(frame, &mut state, has_color))?;
        tokio::select! {
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.is_press() && state.press(key) == Step::Quit => return Ok(()),
                Some(_) => (),
                None => return Ok(()),
            },
            news = feed.next() => state.take_in(news?),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn signals() -> io::Result<[Signal; 3]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?])
}

/// Reads the terminal's events on a thread, which ends with the process.
fn keys() -> mpsc::UnboundedReceiver<Event> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    receiver
}
