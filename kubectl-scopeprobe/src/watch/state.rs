//! State of the table: keys and maps change it, without I/O.

use std::{cmp::Ordering, collections::BTreeMap};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use view::{Edge, Map, map::printable, render};

use crate::follow::News;

/// Number of columns.
pub const COLUMNS: usize = 11;
/// Key of each column by which rows are sorted, with shift as in k9s.
pub const SORT_KEYS: [char; COLUMNS] = ['C', 'S', 'V', 'P', 'O', 'A', 'F', 'W', 'X', 'R', 'E'];

/// Outcome of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The table goes on.
    Continue,
    /// The person is done.
    Quit,
}

/// Part of the screen that has the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Focus {
    /// The table.
    #[default]
    Table,
    /// The line in which the filter is written.
    Filter,
    /// The description of an edge, from this line on.
    Details(u16),
    /// The list of keys.
    Help,
}

/// Change of an edge by the last map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its counters or times changed.
    Changed,
    /// It is new since the table began.
    New,
}

/// Row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Edge of the row.
    pub edge: Edge,
    /// Texts of its cells.
    pub cells: [String; COLUMNS],
    /// Change by the last map.
    pub change: Option<Change>,
}

/// State of the table.
#[derive(Default)]
pub struct State {
    rows: Vec<Row>,
    shown: Vec<usize>,
    map: Option<Map>,
    selected: Option<String>,
    sort: Option<(usize, bool)>,
    is_failed_only: bool,
    /// Part of the screen that has the keys.
    pub focus: Focus,
    /// Text that rows have to contain, or not to contain after a `!`.
    pub filter: String,
    /// True if the selection moves to the edge that changed last.
    pub follows: bool,
    /// Reason for which the rows may be out of date; empty if they are not.
    pub problem: String,
    /// Number of rows that the screen has.
    pub page: usize,
    /// Last line of the details from which on they fill the screen.
    pub last_line: u16,
}

impl State {
    /// Takes in news of the cluster.
    pub fn take_in(&mut self, news: News) {
        let is_other_problem = news.problem != self.problem;
        self.problem = news.problem;
        // Marks of changes stay if only the problem is another.
        if !is_other_problem || news.map != self.map {
            news.map.into_iter().for_each(|map| self.replace(map));
        }
    }

    fn replace(&mut self, map: Map) {
        let is_first = self.map.is_none();
        let place = self.place();
        let before: BTreeMap<&str, &Row> = self.rows.iter().map(|row| (row.edge.id.as_str(), row)).collect();
        let change = |edge: &Edge| match before.get(edge.id.as_str()) {
            Some(row) if row.edge == *edge => row.change.filter(|change| *change == Change::New),
            Some(row) => row.change.filter(|change| *change == Change::New).or(Some(Change::Changed)),
            None => (!is_first).then_some(Change::New),
        };
        let is_different = |edge: &Edge| before.get(edge.id.as_str()).is_none_or(|row| row.edge != *edge);
        let last = map.edges.iter().filter(|edge| is_different(edge)).max_by_key(|edge| edge.last_seen.clone());
        let last = last.filter(|_| !is_first).map(|edge| edge.id.clone());
        let cells = render::table::rows(&map);
        let rows =
            map.edges.iter().zip(cells).map(|(edge, cells)| Row { edge: edge.clone(), cells, change: change(edge) });
        self.rows = rows.collect();
        self.map = Some(map);
        self.arrange_around(place);
        if let Some(last) = last.filter(|last| self.follows && self.place_of(last).is_some()) {
            self.selected = Some(last);
        }
    }

    /// Selects and sorts rows. The selected edge stays selected as long as it is shown.
    fn arrange(&mut self) {
        self.arrange_around(self.place());
    }

    /// Selects and sorts rows. If the selected edge is not shown any more, the one at its place is selected.
    fn arrange_around(&mut self, place: Option<usize>) {
        let (is_without, text) = match self.filter.strip_prefix('!') {
            Some(text) => (true, text.to_lowercase()),
            None => (false, self.filter.to_lowercase()),
        };
        let matches = |row: &Row| {
            let has = row.cells[..4].iter().any(|cell| cell.to_lowercase().contains(&text));
            (text.is_empty() || has != is_without) && (!self.is_failed_only || row.edge.counters.has_failures())
        };
        self.shown = (0..self.rows.len()).filter(|row| matches(&self.rows[*row])).collect();
        if let Some((column, is_descending)) = self.sort {
            let rows = &self.rows;
            self.shown.sort_by(|one, other| {
                let order = compare(&rows[*one], &rows[*other], column);
                if is_descending { order.reverse() } else { order }
            });
        }
        let is_shown = self.selected.as_ref().is_some_and(|selected| self.place_of(selected).is_some());
        if !is_shown {
            self.select(place.unwrap_or_default());
        }
    }

    /// Changes the state by a key, as k9s does.
    pub fn press(&mut self, key: KeyEvent) -> Step {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Step::Quit;
        }
        match self.focus {
            Focus::Filter => self.press_in_filter(key.code),
            Focus::Details(line) => self.press_in_details(key.code, line),
            Focus::Help => self.focus = Focus::Table,
            Focus::Table => return self.press_in_table(key),
        }
        Step::Continue
    }

    fn press_in_table(&mut self, key: KeyEvent) -> Step {
        let place = self.place().unwrap_or_default();
        let page = self.page.max(1);
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('z') if is_control => {
                self.is_failed_only = !self.is_failed_only;
                self.arrange();
            }
            KeyCode::Char('f') if is_control => self.select(place.saturating_add(page)),
            KeyCode::Char('b') if is_control => self.select(place.saturating_sub(page)),
            KeyCode::Down | KeyCode::Char('j') => self.select(place.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(place.saturating_sub(1)),
            KeyCode::PageDown => self.select(place.saturating_add(page)),
            KeyCode::PageUp => self.select(place.saturating_sub(page)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Char('f') => self.follows = !self.follows,
            KeyCode::Char('/') => self.focus = Focus::Filter,
            KeyCode::Char('?') => self.focus = Focus::Help,
            KeyCode::Enter | KeyCode::Char('d') if self.selected.is_some() => self.focus = Focus::Details(0),
            KeyCode::Esc => {
                self.filter.clear();
                self.is_failed_only = false;
                self.arrange();
            }
            KeyCode::Char(key) => self.sort_by(key),
            _ => (),
        }
        Step::Continue
    }

    fn sort_by(&mut self, key: char) {
        let Some(column) = SORT_KEYS.iter().position(|known| *known == key) else { return };
        // Numbers begin with the largest.
        let first = (4..10).contains(&column);
        self.sort = match self.sort {
            Some((now, is_descending)) if now == column => Some((column, !is_descending)),
            _ => Some((column, first)),
        };
        self.arrange();
    }

    fn press_in_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(character) => self.filter.push(character),
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Enter => self.focus = Focus::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.focus = Focus::Table;
            }
            _ => (),
        }
        self.arrange();
    }

    fn press_in_details(&mut self, key: KeyCode, line: u16) {
        self.focus = match key {
            KeyCode::Down | KeyCode::Char('j') => Focus::Details(line.saturating_add(1).min(self.last_line)),
            KeyCode::Up | KeyCode::Char('k') => Focus::Details(line.saturating_sub(1)),
            KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q' | 'd') => Focus::Table,
            _ => Focus::Details(line),
        };
    }

    fn select(&mut self, place: usize) {
        let last = self.shown.len().saturating_sub(1);
        let row = self.shown.get(place.min(last)).and_then(|row| self.rows.get(*row));
        self.selected = row.map(|row| row.edge.id.clone());
    }

    fn place_of(&self, id: &str) -> Option<usize> {
        self.shown.iter().position(|row| self.rows[*row].edge.id == id)
    }

    /// Returns the place of the selected row among those that are shown.
    pub fn place(&self) -> Option<usize> {
        self.place_of(self.selected.as_deref()?)
    }

    /// Returns the rows that are shown, in their order.
    pub fn shown(&self) -> impl Iterator<Item = &Row> {
        self.shown.iter().map(|row| &self.rows[*row])
    }

    /// Returns the column by which rows are sorted, and whether the largest is first.
    pub fn sort(&self) -> Option<(usize, bool)> {
        self.sort
    }

    /// Returns a description of the selected edge.
    pub fn details(&self) -> String {
        let (Some(map), Some(selected)) = (&self.map, &self.selected) else { return String::new() };
        match map.edges.iter().find(|edge| edge.id == *selected) {
            Some(edge) => view::explain::edge(edge, &render::Names::of(map)),
            None => "This edge has left the map.".to_owned(),
        }
    }

    /// Returns a line about what is shown, and one about what is missing.
    pub fn summary(&self) -> (String, Option<String>) {
        let Some(map) = &self.map else { return ("reading the cluster".to_owned(), None) };
        let mut parts = vec![format!("{} of {} edges", self.shown.len(), self.rows.len())];
        parts.extend((!self.filter.is_empty()).then(|| format!("filter /{}", printable(&self.filter))));
        parts.extend(self.is_failed_only.then(|| "with failures only".to_owned()));
        parts.extend(self.follows.then(|| "follows the last change".to_owned()));
        let missing = match map.caveats.as_slice() {
            [] => None,
            [one] => Some(format!("incomplete: {one}")),
            [first, others @ ..] => Some(format!("incomplete: {first} (and {} more)", others.len())),
        };
        (parts.join(", "), missing)
    }
}

fn compare(one: &Row, other: &Row, column: usize) -> Ordering {
    let number = |row: &Row| {
        let counters = &row.edge.counters;
        match column {
            3 => row.edge.port.map(u64::from),
            4 => Some(counters.opened),
            5 => Some(counters.active),
            6 => Some(counters.failed),
            7 => Some(counters.pending),
            8 => counters.bytes_sent,
            9 => counters.bytes_received,
            _ => None,
        }
    };
    match column {
        3..=9 => number(one).cmp(&number(other)),
        _ => one.cells[column].cmp(&other.cells[column]),
    }
}
