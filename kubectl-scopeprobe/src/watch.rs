//! `watch`: a table of edges in the terminal that follows the cluster.

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

use self::state::{State, Step};
use crate::{
    cli::Selection,
    follow::{Follower, News},
    source::Source,
};

/// Shows the table until the person or a signal ends it.
///
/// # Errors
/// Returns an error if there is no terminal, or if the objects cannot be read.
pub async fn watch(source: &Source, selection: &Selection) -> Result<()> {
    if source.is_of_files() {
        bail!("`watch` follows a cluster; `table` shows files");
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("`watch` needs a terminal; `table` writes to pipes and files");
    }
    let follower = Follower::start(source.watched().await?);
    // It restores the terminal on a panic as well.
    let terminal = ratatui::try_init().context("the terminal")?;
    let outcome = run(terminal, follower, selection).await;
    ratatui::restore();
    outcome
}

async fn run(mut terminal: DefaultTerminal, mut follower: Follower, selection: &Selection) -> Result<()> {
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
            news = follower.next() => state.take_in(selected(news, selection)?),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn selected(news: News, selection: &Selection) -> Result<News> {
    let map = news.map.map(|map| selection.select(map)).transpose()?;
    Ok(News { map, ..news })
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
