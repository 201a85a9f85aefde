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

use anyhow::{Context, Result, ensure};
use rustix::event::epoll;
use rustix::fs::Timespec;
use serde_json::Value;

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
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("Cannot make an epoll set")?;
    let start = Instant::now() + period;
    let mut clients = Vec::with_capacity(plan.clients);
    for number in 0..plan.clients {
        let offset = match plan.together {
            true => Duration::ZERO,
            false => period.mul_f64(number as f64 / plan.clients as f64),
        };
        let client = Client::connect(socket, plan, start + offset, rounds)?;
        let token = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, client.stream(), token, epoll::EventFlags::IN)
            .context("Cannot watch a client")?;
        clients.push(client);
    }
    // A server that answers no more must not hold the lab up for ever.
    let give_up = start + plan.lasting * 4 + Duration::from_secs(30);
    let mut events = Vec::with_capacity(plan.clients);
    let mut shared = vec![0; 256 << 10];
    loop {
        for client in &mut clients {
            client.ask_if_due(Instant::now())?;
        }
        if clients.iter().all(Client::is_done) {
            break;
        }
        ensure!(
            Instant::now() < give_up,
            "{} clients still wait for answers",
            clients.iter().filter(|client| !client.is_done()).count()
        );
        let next = clients.iter().filter_map(Client::next_due).min();
        let wait = next.map_or(Duration::from_secs(1), |due| {
            due.saturating_duration_since(Instant::now())
        });
        events.clear();
        wait_for_events(&epoll, &mut events, wait)?;
        for event in &events {
            let number = event.data.u64() as usize;
            if let Some(client) = clients.get_mut(number) {
                client
                    .receive(&mut shared)
                    .with_context(|| format!("Client {number}"))?;
            }
        }
    }
    let took = start.elapsed();
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

fn wait_for_events(
    epoll: &impl std::os::fd::AsFd,
    events: &mut Vec<epoll::Event>,
    wait: Duration,
) -> Result<()> {
    let timeout = Timespec {
        tv_sec: wait.as_secs() as i64,
        tv_nsec: wait.subsec_nanos().into(),
    };
    match epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(events),
        Some(&timeout),
    ) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("Cannot wait for answers"),
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
