//! The live view of `ch-remote exit-stats --watch`.
//!
//! Readings are taken on a thread of their own, so that keys work while a VMM
//! is slow to answer; the model is driven by readings and keys alone, which is
//! how its tests drive it.

mod model;
mod view;

pub use model::{Key, Model, Outcome, Sort};
pub use view::{Palette, draw};

use std::io;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use instrumentation::snapshot::ExitSnapshot;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen};
use ratatui::layout::Rect;
use ratatui::{TerminalOptions, Viewport};

/// How long a key may wait for the screen.
const TICK: Duration = Duration::from_millis(50);

/// How long an answer may take before what is shown counts as old.
const ANSWER: Duration = Duration::from_secs(2);

/// Runs the view on the terminal until the user quits. `read` takes a reading.
/// The terminal is given back as it was, also after a panic.
pub fn run(
    vm: &str,
    interval: Duration,
    mut read: impl FnMut() -> Result<ExitSnapshot, String> + Send + 'static,
) -> io::Result<()> {
    let (sender, readings) = mpsc::channel();
    std::thread::Builder::new()
        .name("exit-stats".into())
        .spawn(move || {
            loop {
                // The view is gone once nobody listens.
                if sender.send((read(), Instant::now())).is_err() {
                    return;
                }
                std::thread::sleep(interval);
            }
        })?;
    let mut terminal = init()?;
    let outcome = watch(
        &mut terminal,
        &mut Model::new(vm),
        &readings,
        interval + ANSWER,
    );
    ratatui::try_restore()?;
    outcome
}

/// A serial line does not say how large the terminal at its other end is.
const UNKNOWN_SIZE: Rect = Rect::new(0, 0, 80, 24);

fn init() -> io::Result<ratatui::DefaultTerminal> {
    let (columns, rows) = ratatui::crossterm::terminal::size()?;
    match viewport(columns, rows) {
        Viewport::Fullscreen => ratatui::try_init(),
        viewport => {
            let terminal = ratatui::try_init_with_options(TerminalOptions { viewport })?;
            execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
            Ok(terminal)
        }
    }
}

fn viewport(columns: u16, rows: u16) -> Viewport {
    match columns == 0 || rows == 0 {
        true => Viewport::Fixed(UNKNOWN_SIZE),
        false => Viewport::Fullscreen,
    }
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    readings: &mpsc::Receiver<(Result<ExitSnapshot, String>, Instant)>,
    patience: Duration,
) -> io::Result<()> {
    let palette = Palette::from_environment();
    loop {
        for (reading, at) in readings.try_iter() {
            model.update(reading, at);
        }
        model.expect_reading(Instant::now(), patience);
        terminal.draw(|frame| draw(frame, model, palette))?;
        if !event::poll(TICK)? {
            continue;
        }
        if let Event::Key(pressed) = event::read()?
            && pressed.kind == KeyEventKind::Press
        {
            let interrupted = pressed.modifiers.contains(KeyModifiers::CONTROL)
                && pressed.code == KeyCode::Char('c');
            let outcome = key(pressed.code).map(|key| model.key(key));
            if interrupted || outcome == Some(Outcome::Quit) {
                return Ok(());
            }
        }
    }
}

fn key(code: KeyCode) -> Option<Key> {
    Some(match code {
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
