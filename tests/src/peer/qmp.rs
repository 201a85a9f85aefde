//! QEMU's machine protocol on a Unix socket: a line of JSON each way, with
//! events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that takes commands.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and agrees on the protocol.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("Cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
        };
        qmp.reader
            .read_line(&mut String::new())
            .context("QEMU does not greet")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        self.reader
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("Cannot send {command}"))?;
        loop {
            let mut answer = String::new();
            self.reader
                .read_line(&mut answer)
                .with_context(|| format!("No answer to {command}"))?;
            let answer: Value = serde_json::from_str(&answer)
                .with_context(|| format!("The answer to {command} is {answer:?}"))?;
            if let Some(outcome) = outcome(answer) {
                return outcome.with_context(|| format!("{command} failed"));
            }
        }
    }
}

/// What an answer says; nothing if it is an event.
fn outcome(mut answer: Value) -> Option<Result<Value>> {
    if let Some(error) = answer.get("error") {
        return Some(Err(anyhow::anyhow!("{error}")));
    }
    answer.get_mut("return").map(|value| Ok(value.take()))
}

/// A vCPU's figures of KVM by name, each a number or a list.
pub type Figures = serde_json::Map<String, Value>;

/// The answer to `query-stats`: the figures of each vCPU.
pub fn vcpu_figures(answer: &Value) -> Result<Vec<Figures>> {
    let mut vcpus = Vec::new();
    for vcpu in answer.as_array().context("There are no vCPUs")? {
        let mut figures = Figures::new();
        for figure in vcpu["stats"].as_array().context("A vCPU has no figures")? {
            let name = figure["name"].as_str().context("A figure has no name")?;
            if figures
                .insert(name.to_owned(), figure["value"].clone())
                .is_some()
            {
                bail!("{name} is there twice");
            }
        }
        vcpus.push(figures);
    }
    Ok(vcpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_no_answers_and_errors_are() {
        assert!(outcome(json!({"event": "STOP", "data": {}})).is_none());
        assert!(outcome(json!({"error": {"desc": "no"}})).unwrap().is_err());
        let answer = outcome(json!({"return": [1]})).unwrap().unwrap();
        assert_eq!(answer, json!([1]));
    }

    #[test]
    fn figures_are_found_by_vcpu_and_name() {
        let answer = json!([
            {"provider": "kvm", "qom-path": "/a", "stats": [
                {"name": "exits", "value": 7}, {"name": "hist", "value": [2, 1]}]},
            {"provider": "kvm", "qom-path": "/b", "stats": []},
        ]);
        let vcpus = vcpu_figures(&answer).unwrap();
        assert_eq!(vcpus.len(), 2);
        assert_eq!(vcpus[0]["hist"], json!([2, 1]));
    }
}
