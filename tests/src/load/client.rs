//! One connection that asks the same question over and over.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api_client::client::{Method, ResponseHead, request_bytes};
use serde_json::Value;

use super::Plan;

/// As much of each answer as is looked at: the head, and the body up to the
/// machine's total.
const LOOKED_AT: usize = 2 << 10;

/// A client and its schedule.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    /// When the next question is due.
    due: Instant,
    period: Duration,
    figures: bool,
    /// Questions left to ask.
    left: u32,
    /// When the question was due that is not answered yet.
    asked: Option<Instant>,
    /// The answer's first bytes; of the last answer all.
    kept: Vec<u8>,
    received: usize,
    /// Where the answer's body starts and ends, once its head is there.
    body: Option<(usize, usize)>,
    last_total: u64,
    times: Vec<Duration>,
    bytes: u64,
}

impl Client {
    /// Connects; nothing is asked yet.
    pub fn connect(socket: &Path, plan: &Plan, first: Instant, rounds: u32) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("Cannot connect to {}", socket.display()))?;
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            request: request_bytes(Method::Get, &plan.path, None),
            due: first,
            period: Duration::from_secs_f64(1.0 / plan.hertz),
            figures: plan.figures,
            left: rounds,
            asked: None,
            kept: Vec::new(),
            received: 0,
            body: None,
            last_total: 0,
            times: Vec::with_capacity(rounds as usize),
            bytes: 0,
        })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn is_done(&self) -> bool {
        self.left == 0 && self.asked.is_none()
    }

    /// When it wants to ask again; nothing while it waits for an answer.
    pub fn next_due(&self) -> Option<Instant> {
        (self.left > 0 && self.asked.is_none()).then_some(self.due)
    }

    pub fn times(&self) -> &[Duration] {
        &self.times
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Asks if it is time and the answer before has arrived.
    pub fn ask_if_due(&mut self, now: Instant) -> Result<()> {
        if self.next_due().is_none_or(|due| due > now) {
            return Ok(());
        }
        // A request is far smaller than the socket's buffer.
        let sent = self.stream.write(&self.request).context("Cannot ask")?;
        ensure!(sent == self.request.len(), "A question was sent in part");
        self.asked = Some(self.due);
        self.due += self.period;
        self.left -= 1;
        self.kept.clear();
        self.received = 0;
        self.body = None;
        Ok(())
    }

    /// Reads what has arrived, by way of memory that all clients share: that of
    /// each would have to be fetched from far each time.
    pub fn receive(&mut self, shared: &mut [u8]) -> Result<()> {
        loop {
            let count = match self.stream.read(shared) {
                Ok(0) => bail!("The server closed the connection"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("Cannot read an answer"),
            };
            self.received += count;
            let room = match self.left {
                0 => usize::MAX,
                _ => LOOKED_AT.saturating_sub(self.kept.len()),
            };
            self.kept.extend_from_slice(&shared[..count.min(room)]);
            if self.body.is_none() {
                self.body = head(&self.kept)?;
            }
            if let Some((start, end)) = self.body
                && self.received >= end
            {
                ensure!(self.received == end, "More came than one answer");
                return self.finish(start, end);
            }
        }
    }

    fn finish(&mut self, start: usize, end: usize) -> Result<()> {
        let due = self.asked.take().context("An answer to no question")?;
        self.times.push(due.elapsed());
        self.bytes += (end - start) as u64;
        if !self.figures {
            return Ok(());
        }
        let total = total(&self.kept[start..])?;
        ensure!(
            total >= self.last_total,
            "The total went from {} back to {total}",
            self.last_total
        );
        self.last_total = total;
        Ok(())
    }

    /// The last answer's body.
    pub fn last_body(&self) -> Result<Value> {
        let (start, end) = self.body.context("A client got no answer")?;
        serde_json::from_slice(&self.kept[start..end]).context("An answer is not JSON")
    }
}

/// Where the body starts and ends; nothing before the head is complete.
fn head(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(head) = ResponseHead::parse(bytes).context("An answer is not HTTP")? else {
        return Ok(None);
    };
    ensure!(head.status == 200, "The answer is {}", head.status);
    let length = head.body_len.context("The answer has no length")?;
    Ok(Some((head.len, head.len + length)))
}

/// The machine's total, without parsing all of the body: that would take
/// longer than what is measured.
fn total(body: &[u8]) -> Result<u64> {
    const BEFORE: &[u8] = b"\"totals\":{\"exits\":";
    let start = body
        .windows(BEFORE.len())
        .position(|window| window == BEFORE)
        .context("The answer has no total")?
        + BEFORE.len();
    let digits: String = body[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .map(|&byte| char::from(byte))
        .collect();
    digits.parse().context("The total is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_where_the_body_is() {
        let text = b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(head(text).unwrap(), Some((text.len() - 3, text.len())));
        assert_eq!(head(&text[..20]).unwrap(), None);
        assert!(head(b"HTTP/1.1 500 \r\nContent-Length: 3\r\n\r\nabc").is_err());
        assert!(head(b"HTTP/1.1 200 \r\n\r\n").is_err());
    }

    #[test]
    fn the_total_is_the_first_one() {
        let body =
            br#"{"isa":"vmx","totals":{"exits":12,"cycles":3},"vcpus":[{"totals":{"exits":5}}]}"#;
        assert_eq!(total(body).unwrap(), 12);
        assert!(total(b"{}").is_err());
    }
}
