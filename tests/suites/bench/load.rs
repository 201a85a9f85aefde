//! A busy machine while 64 clients ask over and over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::bench::load::{
    ANSWERS, FUTEXES, HELD_UP, MEDIAN, P99, RATE_ASKED, RATE_PINGED, STRANGE, WORST,
};
use lab::load::busy::{Moment, Span};

use super::figure;
use crate::load::{QUESTION, busy_machine, observe, unexplained};
use crate::site::Site;

/// A tenth of what is asked of a real host: the emulated CPU does an instruction
/// a nanosecond and copies a byte an instruction.
const HERTZ: f64 = 10.0;
const LASTING: Duration = Duration::from_secs(2);

pub fn measure(site: &Site) -> Result<()> {
    let machine = busy_machine(site)?;
    // The guest does the same all the time, so CPUIDs tell how far it came.
    let cpuid = site.numbers().cpuid;
    let rate = |span: &Span| -> Result<f64> {
        let exits = span.reasons.get(&cpuid).context("The guest stands still")?;
        Ok(*exits as f64 / span.ran.as_secs_f64())
    };
    let quiet = || -> Result<f64> {
        let before = Moment::of(&machine)?;
        std::thread::sleep(LASTING);
        rate(&Moment::of(&machine)?.since(&before))
    };
    let first = quiet()?;
    let pinged = observe(&machine, "/api/v1/vmm.ping", HERTZ, LASTING);
    let asked = observe(&machine, QUESTION, HERTZ, LASTING)?;
    let alone = (first + quiet()?) / 2.0;
    let percent = |busy: f64| (busy / alone - 1.0) * 100.0;

    let outcome = &asked.outcome;
    eprintln!("{outcome}\n{:?}", asked.span);
    ensure!(outcome.times.len() == outcome.due, "Answers are missing");
    figure(ANSWERS, outcome.rate());
    let ms = |share| outcome.quantile(share).as_secs_f64() * 1e3;
    figure(MEDIAN, ms(0.5));
    figure(P99, ms(0.99));
    figure(WORST, ms(1.0));
    figure(RATE_PINGED, percent(rate(&pinged?.span)?));
    figure(RATE_ASKED, percent(rate(&asked.span)?));
    figure(HELD_UP, (asked.span.waits + asked.span.interrupted) as f64);
    figure(FUTEXES, (asked.futexes + asked.signals) as f64);
    figure(STRANGE, unexplained(site, &asked.span) as f64);
    Ok(())
}
