//! Draws the state.

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState, Widget as _, Wrap},
};
use view::render::table::HEADER;

use super::state::{Change, Focus, Row, SORT_KEYS, State};

const HELP: &str = "\
j, k, arrows   next and previous row
g, G           first and last row
Ctrl-F, Ctrl-B next and previous page
Enter, d       details of the edge
/              filter; !text leaves out rows with the text
Esc            back; clears the filter
Ctrl-Z         rows with failures only
f              follow: select the edge that changed last
Shift + letter sort: C client, S server, V service, P port,
               O opened, A active, F failed, W pending,
               X sent, R received, E seen; again: other order
q, Ctrl-C      quit
Marks: + new, * changed, ! failures
";

/// Maximum number of lines of the note below the table.
const LONGEST_NOTE: u16 = 6;

/// Draws everything, and notes the number of rows that fit and the last line of details.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, has_color: bool) {
    let (summary, missing) = state.summary();
    let note = if state.problem.is_empty() { missing.unwrap_or_default() } else { state.problem.clone() };
    let note = Paragraph::new(note).wrap(Wrap { trim: true });
    // Problems say what to do at their end.
    let most = LONGEST_NOTE.min(frame.area().height / 2);
    let height = wrapped_lines(&note, frame.area().width, most).max(1);
    let parts = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(height), Constraint::Length(1)];
    let [top, middle, below, bottom] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(Line::from(format!("kubectl scopeprobe watch: {summary}")).style(bold()), top);
    state.page = usize::from(middle.height.saturating_sub(1));
    table(frame, middle, state, has_color);
    let keys = match state.focus {
        Focus::Filter => format!("/{}_", view::map::printable(&state.filter)),
        Focus::Table => "? keys  / filter  Enter details  f follow  Ctrl-Z failures  q quit".to_owned(),
        Focus::Details(_) | Focus::Help => "Esc back".to_owned(),
    };
    frame.render_widget(note, below);
    frame.render_widget(Line::from(keys), bottom);
    match state.focus {
        Focus::Details(line) => {
            let text = state.details();
            state.last_line = last_line(&text, middle);
            let line = line.min(state.last_line);
            state.focus = Focus::Details(line);
            window(frame, middle, "Edge", &text, line);
        }
        Focus::Help => window(frame, middle, "Keys", HELP, 0),
        Focus::Table | Focus::Filter => (),
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &State, has_color: bool) {
    // Only rows on the screen are made into widgets: maps may have thousands.
    let selected = state.place();
    let first = selected.map_or(0, |place| (place / state.page.max(1)) * state.page.max(1));
    let rows: Vec<&Row> = state.shown().skip(first).take(state.page).collect();
    let widths = HEADER.iter().enumerate().map(|(column, header)| {
        let cells = rows.iter().map(|row| Text::from(row.cells[column].as_str()).width());
        let width = cells.chain([header.len() + 1]).max().unwrap_or_default();
        Constraint::Length(u16::try_from(width.min(40)).unwrap_or(40))
    });
    let header = HEADER.iter().zip(SORT_KEYS).enumerate().map(|(column, (header, _))| match state.sort() {
        Some((sorted, true)) if sorted == column => format!("{header}↓"),
        Some((sorted, false)) if sorted == column => format!("{header}↑"),
        _ => (*header).to_owned(),
    });
    let header = TableRow::new([String::new()].into_iter().chain(header)).style(bold());
    let lines = rows.iter().map(|row| line(row, has_color));
    let widget = Table::new(lines, [Constraint::Length(2)].into_iter().chain(widths).collect::<Vec<_>>())
        .header(header)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut at = TableState::new().with_selected(selected.map(|place| place - first));
    frame.render_stateful_widget(widget, area, &mut at);
}

fn line(row: &Row, has_color: bool) -> TableRow<'_> {
    let fails = row.edge.counters.has_failures();
    let change = match row.change {
        Some(Change::New) => "+",
        Some(Change::Changed) => "*",
        None => " ",
    };
    let mark = format!("{change}{}", if fails { "!" } else { " " });
    let style = if fails && has_color { Style::new().fg(Color::Red) } else { Style::new() };
    TableRow::new([Cell::from(mark)].into_iter().chain(row.cells.iter().map(|cell| Cell::from(cell.as_str()))))
        .style(style)
}

/// Returns the last line of a text from which on it fills a window.
fn last_line(text: &str, window: Rect) -> u16 {
    let inner = Block::bordered().inner(window);
    let width = usize::from(inner.width).max(1);
    // Two lines next to each other have more than a width of text: it would fit in one otherwise.
    let most: usize = text.lines().map(|line| 2 * Line::from(line).width().div_ceil(width) + 1).sum();
    let most = u16::try_from(most).unwrap_or(u16::MAX);
    wrapped_lines(&details(text), inner.width, most).saturating_sub(inner.height)
}

/// Returns the number of lines of a paragraph at a width, at most `most`.
fn wrapped_lines(paragraph: &Paragraph<'_>, width: u16, most: u16) -> u16 {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, most));
    paragraph.render(buffer.area, &mut buffer);
    let lines = buffer.content.chunks(usize::from(width).max(1));
    let last = lines.zip(1..).filter(|(line, _)| line.iter().any(|cell| cell.symbol() != " ")).last();
    last.map_or(0, |(_, number)| number)
}

fn details(text: &str) -> Paragraph<'_> {
    Paragraph::new(text).wrap(Wrap { trim: false })
}

fn window(frame: &mut Frame<'_>, area: Rect, title: &str, text: &str, line: u16) {
    frame.render_widget(Clear, area);
    frame.render_widget(details(text).block(Block::bordered().title(title)).scroll((line, 0)), area);
}
