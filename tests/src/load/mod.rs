//! Clients that poll a VMM's figures on a fixed schedule and measure how long
//! each answer takes.
//!
//! An answer's time counts from the moment at which its question was due, not
//! from when it could be sent: a server that stalls is charged for every
//! question that it held up. One thread drives all clients, so on a small
//! machine the measuring itself takes as little as it can.

pub mod busy;
mod client;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use serde_json::Value;
use vmm_sys_util::timerfd::TimerFd;

use client::Client;

/// Who asks what, how often and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections, each open from start to end.
    pub clients: usize,
    /// Questions a second on each.
    pub hertz: f64,
    /// How long.
    pub lasting: Duration,
    /// What is asked for: a path with parameters.
    pub path: String,
    /// Whether all clients ask in the same instant; else they are spread over
    /// the period.
    pub together: bool,
    /// Whether it is asked for figures, which never go back.
    pub figures: bool,
}

/// What the clients saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Questions that were due.
    pub due: usize,
    /// Time to each answer, ascending.
    pub times: Vec<Duration>,
    /// Bytes of the answers.
    pub bytes: u64,
    /// From the first question to the last answer.
    pub took: Duration,
    /// Each client's last body.
    pub last: Vec<Value>,
}

impl Outcome {
    /// Several as one: their times together, their durations one after the other.
    pub fn of_all(outcomes: Vec<Outcome>) -> Outcome {
        let mut all = Outcome {
            due: 0,
            times: Vec::new(),
            bytes: 0,
            took: Duration::ZERO,
            last: Vec::new(),
        };
        for outcome in outcomes {
            all.due += outcome.due;
            all.times.extend(outcome.times);
            all.bytes += outcome.bytes;
            all.took += outcome.took;
            all.last.extend(outcome.last);
        }
        all.times.sort_unstable();
        all
    }

    /// The time within which this share of the answers came.
    pub fn quantile(&self, share: f64) -> Duration {
        let index = (self.times.len() as f64 * share).ceil() as usize;
        let last = self.times.len().saturating_sub(1);
        self.times
            .get(index.saturating_sub(1).min(last))
            .copied()
            .unwrap_or_default()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{} of {} answered, {:.0} a second, {:.0} KB each; \
             ms: median {:.2}, p90 {:.2}, p99 {:.2}, worst {:.2}",
            self.times.len(),
            self.due,
            self.rate(),
            self.bytes as f64 / self.times.len().max(1) as f64 / 1000.0,
            ms(self.quantile(0.5)),
            ms(self.quantile(0.9)),
            ms(self.quantile(0.99)),
            ms(self.quantile(1.0)),
        )
    }
}

/// Lets the clients ask until the time is over. Anything but an answer with
/// status 200 is an error, and where figures are asked for a total that is smaller
/// than the one before.
pub fn run(socket: &Path, plan: &Plan) -> Result<Outcome> {
    let period = Duration::from_secs_f64(1.0 / plan.hertz);
    let rounds = (plan.lasting.as_secs_f64() * plan.hertz).floor() as u32;
    ensure!(plan.clients > 0 && rounds > 0, "The plan asks nothing");
    let start = Instant::now() + period;
    let mut clients = Vec::with_capacity(plan.clients);
    for number in 0..plan.clients {
        let offset = match plan.together {
            true => Duration::ZERO,
            false => period.mul_f64(number as f64 / plan.clients as f64),
        };
        clients.push(Client::connect(socket, plan, start + offset, rounds)?);
    }
    let mut manager = EventManager::new().context("Cannot make an event manager")?;
    let id = manager.add_subscriber(Clients {
        clients,
        timer: TimerFd::new().context("Cannot make a timer")?,
        buffer: vec![0; 256 << 10],
        failure: None,
    });
    // A server that answers no more must not hold the lab up for ever.
    let give_up = start + plan.lasting * 4 + Duration::from_secs(30);
    loop {
        let all = manager.subscriber_mut(id)?;
        let Some(timeout) = all.prepare()? else {
            break;
        };
        ensure!(
            Instant::now() < give_up,
            "{} clients still wait for answers",
            all.clients
                .iter()
                .filter(|client| !client.is_done())
                .count()
        );
        manager
            .run_with_timeout(timeout)
            .context("Cannot wait for answers")?;
    }
    let took = start.elapsed();
    let clients = &manager.subscriber_mut(id)?.clients;
    let mut times: Vec<_> = clients.iter().flat_map(Client::times).copied().collect();
    times.sort_unstable();
    Ok(Outcome {
        due: plan.clients * rounds as usize,
        bytes: clients.iter().map(Client::bytes).sum(),
        times,
        took,
        last: clients
            .iter()
            .map(Client::last_body)
            .collect::<Result<_>>()?,
    })
}

/// Not a client's number: the next question is due.
const TIMER: u32 = u32::MAX;
/// Milliseconds to wait where no question is due before an answer came.
const LONG: i32 = 1000;

/// All clients, as one subscriber.
struct Clients {
    clients: Vec<Client>,
    /// A wait of the event manager's own has milliseconds, and questions are due
    /// more often.
    timer: TimerFd,
    /// What answers are read into.
    buffer: Vec<u8>,
    /// Why it cannot go on.
    failure: Option<Error>,
}

impl Clients {
    /// Asks what is due. Says how long to wait for answers at most; nothing once all
    /// is asked and answered.
    fn prepare(&mut self) -> Result<Option<i32>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        for client in &mut self.clients {
            client.ask_if_due(Instant::now())?;
        }
        if self.clients.iter().all(Client::is_done) {
            return Ok(None);
        }
        let Some(due) = self.clients.iter().filter_map(Client::next_due).min() else {
            self.timer.clear().context("Cannot stop the timer")?;
            return Ok(Some(LONG));
        };
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(0));
        }
        // An expiration that nobody has read is forgotten.
        self.timer
            .reset(left, None)
            .context("Cannot set the timer")?;
        Ok(Some(LONG))
    }
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = self.clients.iter().zip(0..);
        let added = ops
            .add(Events::with_data(&self.timer, TIMER, EventSet::IN))
            .and_then(|()| {
                sources
                    .map(|(client, number)| {
                        Events::with_data(client.stream(), number, EventSet::IN)
                    })
                    .try_for_each(|events| ops.add(events))
            });
        self.failure = added
            .err()
            .map(|error| Error::new(error).context("Cannot watch a client"));
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        let number = events.data() as usize;
        // The timer has no place among them.
        let Some(client) = self.clients.get_mut(number) else {
            return;
        };
        if let Err(error) = client.receive(&mut self.buffer)
            && self.failure.is_none()
        {
            self.failure = Some(error.context(format!("Client {number}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let outcome = Outcome {
            due: 100,
            times: (1..=100).map(Duration::from_millis).collect(),
            bytes: 0,
            took: Duration::from_secs(1),
            last: Vec::new(),
        };
        assert_eq!(outcome.quantile(0.5), Duration::from_millis(50));
        assert_eq!(outcome.quantile(0.99), Duration::from_millis(99));
        assert_eq!(outcome.quantile(1.0), Duration::from_millis(100));
    }
}
