//! Keys and maps in, lines of the screen out.

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    style::{Color, Modifier},
};
use view::{Map, read};

use super::{
    screen,
    state::{Focus, State, Step},
};
use crate::follow::News;

const SHOP: &str = include_str!("../../tests/cmd/shop.in/shop.yaml");
const LATER: &str = include_str!("../../tests/cmd/shop.in/later.yaml");

fn map(text: &str) -> Map {
    read::text(text).unwrap()
}

fn news(map: Map) -> News {
    News { map: Some(map), problem: String::new() }
}

fn state_of(text: &str) -> State {
    let mut state = State::default();
    state.take_in(news(map(text)));
    state
}

/// Presses keys: `^x` is one with control, `<` escape, and `>` enter.
fn press(state: &mut State, keys: &str) -> Step {
    let mut step = Step::Continue;
    let mut modifiers = KeyModifiers::NONE;
    for key in keys.chars() {
        let code = match key {
            '^' => {
                modifiers = KeyModifiers::CONTROL;
                continue;
            }
            '<' => KeyCode::Esc,
            '>' => KeyCode::Enter,
            key => KeyCode::Char(key),
        };
        step = state.press(KeyEvent::new(code, modifiers));
        modifiers = KeyModifiers::NONE;
    }
    step
}

fn terminal(state: &mut State, has_color: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(120, 12)).unwrap();
    terminal.draw(|frame| screen::draw(frame, state, has_color)).unwrap();
    terminal
}

/// Lines of the screen, without spaces at their ends.
fn lines(state: &mut State) -> Vec<String> {
    let terminal = terminal(state, false);
    let buffer = terminal.backend().buffer();
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    buffer.content.chunks(120).map(|row| line(row).trim_end().to_owned()).collect()
}

fn servers(state: &State) -> Vec<&str> {
    state.shown().map(|row| row.cells[1].as_str()).collect()
}

fn selected(state: &State) -> Option<&str> {
    state.shown().nth(state.place()?).map(|row| row.cells[1].as_str())
}

#[test]
fn screen_has_the_table_and_its_gaps() {
    let lines = lines(&mut state_of(SHOP));
    let expected = [
        "kubectl scopeprobe watch: 3 of 3 edges",
        "   CLIENT    SERVER          SERVICE         PORT  OPENED  ACTIVE  FAILED  PENDING  SENT     RECEIVED  SEEN",
        " ! shop/cart data/redis      data/redis:6379 6379  3       0       7       0        1000 B   100 B     Both",
        "   shop/web  shop/cart       shop/cart:80    8080  40      1       0       0        3.9 KiB  78 KiB    Both",
        "   shop/web  api.example.com -               443   5       0       0       0        ≥4.8 KiB ≥9.7 KiB  Client",
    ];
    assert_eq!(lines[..5], expected);
    assert_eq!(lines[10], "incomplete: shop/cart: 3 ingress edges are not listed; the totals count them.");
    assert!(lines[11].starts_with("? keys"), "{}", lines[11]);
}

#[test]
fn first_screen_states_that_nothing_was_read_yet() {
    assert_eq!(lines(&mut State::default())[0], "kubectl scopeprobe watch: reading the cluster");
}

#[test]
fn keys_move_the_selection_within_the_table() {
    let mut state = state_of(SHOP);
    let mut after = |keys| {
        press(&mut state, keys);
        state.place()
    };
    assert_eq!(["", "j", "jjj", "k", "g", "G", "^b"].map(&mut after), [0, 1, 2, 1, 0, 2, 1].map(Some));
}

#[test]
fn rows_are_sorted_by_columns_in_both_orders() {
    let mut state = state_of(SHOP);
    press(&mut state, "O");
    assert_eq!(servers(&state), ["shop/cart", "api.example.com", "data/redis"], "the largest is first");
    assert!(lines(&mut state)[1].contains("OPENED↓"));
    press(&mut state, "O");
    assert_eq!(servers(&state), ["data/redis", "api.example.com", "shop/cart"]);
    press(&mut state, "S");
    assert_eq!(servers(&state), ["api.example.com", "data/redis", "shop/cart"], "names are in alphabetical order");
}

#[test]
fn filters_select_rows_and_escape_clears_them() {
    let mut state = state_of(SHOP);
    press(&mut state, "/REDIS");
    assert_eq!((servers(&state), state.focus), (vec!["data/redis"], Focus::Filter));
    assert_eq!(lines(&mut state)[11], "/REDIS_");
    press(&mut state, ">");
    assert_eq!(lines(&mut state)[0], "kubectl scopeprobe watch: 1 of 3 edges, filter /REDIS");
    press(&mut state, "</!redis>");
    assert_eq!(servers(&state), ["shop/cart", "api.example.com"]);
    press(&mut state, "<^z");
    assert_eq!(servers(&state), ["data/redis"], "the one with failures");
    press(&mut state, "</nothing>");
    assert_eq!((servers(&state), state.place()), (Vec::new(), None));
    press(&mut state, "d");
    assert_eq!(state.focus, Focus::Table, "there is no edge to describe");
}

#[test]
fn details_describe_the_selected_edge() {
    let mut state = state_of(SHOP);
    press(&mut state, ">");
    let shown = lines(&mut state);
    assert!(shown[2].contains("shop/cart -> data/redis:6379"), "{shown:?}");
    press(&mut state, "jj");
    assert_eq!(state.focus, Focus::Details(0), "all of it is shown");
    press(&mut state, "q");
    assert_eq!(state.focus, Focus::Table, "q leaves the window, not the program");
}

#[test]
fn selection_stays_on_its_edge_and_changes_are_marked() {
    let mut state = state_of(SHOP);
    press(&mut state, "j");
    assert_eq!(selected(&state), Some("shop/cart"));
    state.take_in(news(map(LATER)));
    assert_eq!(selected(&state), Some("shop/cart"), "its place is another");
    let shown = lines(&mut state);
    assert!(shown.iter().any(|line| line.starts_with("*! shop/web shop/cart")), "{shown:?}");
    assert!(shown.iter().any(|line| line.starts_with("+  shop/web 192.0.2.9")), "{shown:?}");
    state.take_in(news(map(LATER)));
    let shown = lines(&mut state);
    assert!(shown.iter().any(|line| line.starts_with(" ! shop/web shop/cart")), "no change since: {shown:?}");
}

#[test]
fn following_selects_the_edge_that_changed() {
    let (mut follows, mut stays) = (state_of(SHOP), state_of(SHOP));
    press(&mut follows, "f");
    let mut next = map(SHOP);
    next.edges[2].counters.opened += 1;
    follows.take_in(news(next.clone()));
    stays.take_in(news(next));
    assert_eq!((selected(&follows), selected(&stays)), (Some("api.example.com"), Some("data/redis")));
}

#[test]
fn problems_are_shown_with_earlier_rows_until_they_end() {
    let mut state = state_of(SHOP);
    state.take_in(news(map(LATER)));
    let marked = lines(&mut state);
    state.take_in(News { map: Some(map(LATER)), problem: "The watch is interrupted".to_owned() });
    let shown = lines(&mut state);
    assert_eq!(shown[10], "The watch is interrupted");
    assert_eq!(shown[..10], marked[..10], "rows and their marks stay");
    state.take_in(news(map(LATER)));
    assert_eq!(lines(&mut state), marked);
}

#[test]
fn problem_without_a_map_is_shown() {
    let mut state = State::default();
    state.take_in(News { map: None, problem: "you may not list".to_owned() });
    let shown = lines(&mut state);
    assert_eq!(
        (shown[0].as_str(), shown[10].as_str()),
        ("kubectl scopeprobe watch: reading the cluster", "you may not list")
    );
}

#[test]
fn problems_are_wrapped_by_words_and_shown_to_their_end() {
    let mut state = state_of(SHOP);
    // Two words of 70 characters have the width of two lines, but need three with the third.
    let problem = format!("{} {} {} end", "a".repeat(70), "b".repeat(70), "c".repeat(70));
    state.take_in(News { map: Some(map(SHOP)), problem });
    let shown = lines(&mut state);
    assert_eq!(shown[8..11], ["a".repeat(70), "b".repeat(70), format!("{} end", "c".repeat(70))]);
}

#[test]
fn neighbour_is_selected_when_the_selected_edge_leaves_the_map() {
    for keys in ["", "j", "G"] {
        let mut state = state_of(SHOP);
        press(&mut state, keys);
        let place = state.place();
        let later = map(LATER);
        let is_kept = later.edges.iter().any(|edge| state.shown().nth(place.unwrap()).unwrap().edge.id == edge.id);
        state.take_in(news(later.clone()));
        assert!(state.place().is_some(), "{keys}");
        if !is_kept {
            assert_eq!(state.place(), place.map(|place| place.min(later.edges.len() - 1)), "{keys}");
        }
    }
}

#[test]
fn empty_map_leaves_nothing_selected() {
    let mut state = state_of(SHOP);
    press(&mut state, "G");
    state.take_in(news(Map::new(Vec::new(), Vec::new())));
    assert_eq!((state.place(), state.shown().count()), (None, 0));
    assert_eq!(lines(&mut state)[0], "kubectl scopeprobe watch: 0 of 0 edges");
    state.take_in(news(map(SHOP)));
    assert_eq!(state.place(), Some(0));
}

#[test]
fn details_scroll_to_their_last_wrapped_line() {
    let mut state = state_of(SHOP);
    press(&mut state, ">");
    let mut terminal = Terminal::new(TestBackend::new(24, 12)).unwrap();
    let text = state.details();
    let last_word = text.split_whitespace().last().unwrap();
    let mut shown = String::new();
    for _ in 0..200 {
        terminal.draw(|frame| screen::draw(frame, &mut state, false)).unwrap();
        let buffer = terminal.backend().buffer();
        shown = buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect();
        press(&mut state, "j");
    }
    assert!(shown.contains(last_word), "{last_word}: {shown}");
    let Focus::Details(line) = state.focus else { panic!("{:?}", state.focus) };
    assert!(usize::from(line) > text.lines().count(), "the window has fewer columns than the text");
    press(&mut state, "k");
    assert_eq!(state.focus, Focus::Details(line - 1), "keys beyond the end do not count");
}

#[test]
fn keys_quit_from_the_table_and_anywhere() {
    assert_eq!(press(&mut state_of(SHOP), "q"), Step::Quit);
    for keys in ["^c", "/^c", "?^c", ">^c"] {
        assert_eq!(press(&mut state_of(SHOP), keys), Step::Quit, "{keys}");
    }
    assert_eq!(press(&mut state_of(SHOP), "/q"), Step::Continue);
}

#[test]
fn help_lists_each_key_for_sorting() {
    let mut state = state_of(SHOP);
    press(&mut state, "?");
    let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
    terminal.draw(|frame| screen::draw(frame, &mut state, false)).unwrap();
    let text: String = terminal.backend().buffer().content.iter().map(ratatui::buffer::Cell::symbol).collect();
    for (key, column) in super::state::SORT_KEYS.iter().zip(view::render::table::HEADER) {
        assert!(text.contains(&format!("{key} {}", column.to_lowercase())), "{key} {column}");
    }
}

#[test]
fn colors_are_not_the_only_mark_and_can_be_off() {
    let mut state = state_of(SHOP);
    press(&mut state, "j");
    let mut colors = |has_color| {
        let terminal = terminal(&mut state, has_color);
        let cell = &terminal.backend().buffer()[(4, 2)];
        (cell.fg, cell.modifier.contains(Modifier::REVERSED))
    };
    assert_eq!(colors(true), (Color::Red, false));
    assert_eq!(colors(false), (Color::Reset, false));
}

#[test]
fn selected_row_is_on_the_screen_of_a_long_table() {
    let mut long = map(SHOP);
    let edge = long.edges[0].clone();
    long = Map::new(
        (0..500).map(|number| view::Edge { id: format!("{number:03}"), port: Some(number), ..edge.clone() }).collect(),
        Vec::new(),
    );
    let mut state = State::default();
    state.take_in(news(long));
    lines(&mut state);
    for (keys, port) in [("", " 0 "), ("G", " 499 "), ("^b", " 491 "), ("g^f", " 8 ")] {
        press(&mut state, keys);
        let terminal = terminal(&mut state, false);
        let rows = terminal.backend().buffer().content.chunks(120);
        let is_selected = |row: &&[ratatui::buffer::Cell]| row[5].modifier.contains(Modifier::REVERSED);
        let row: String =
            rows.into_iter().find(is_selected).unwrap().iter().map(ratatui::buffer::Cell::symbol).collect();
        assert!(row.contains(port), "{keys}: {row}");
    }
}
