//! What a person sees while the lab works: a spinner on a terminal, one plain
//! line a step elsewhere.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Steps may run at the same time; together they draw one block of lines.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Runs one step and shows its name, then how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let on_terminal = !BARS.is_hidden();
    let bar = BARS.add(ProgressBar::no_length());
    if on_terminal {
        bar.set_style(
            ProgressStyle::with_template("lab: {spinner} {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
    } else {
        eprintln!("lab: {name}");
    }
    let result = work();
    bar.finish_and_clear();
    let took = started.elapsed();
    let line = match &result {
        Err(_) => format!("lab: {name}: failed after {}", seconds(took)),
        Ok(_) => format!("lab: {name}: {}", seconds(took)),
    };
    if on_terminal || result.is_err() || took >= Duration::from_secs(1) {
        BARS.suspend(|| eprintln!("{line}"));
    }
    result
}

/// A duration as people read it.
pub fn seconds(took: Duration) -> String {
    let whole = took.as_secs();
    if whole >= 60 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_durations_are_split_into_minutes() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
