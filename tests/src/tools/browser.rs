//! Headless Chromium, spoken to by its debugging protocol over a pair of pipes:
//! messages are JSON, each with a zero byte behind it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::command::{bound_command, command, fed, output};

/// Ends a browser that answers no more.
const LIFETIME: &str = "180";

/// A browser with one page; ends with the value.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    folder: PathBuf,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    last_id: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Starts it with an empty page.
    pub fn start(folder: &Path) -> Result<Self> {
        let (to, from) = (folder.join("to-browser"), folder.join("from-browser"));
        output(&mut command("mkfifo", [&to, &from]))?;
        let log = File::create(folder.join("browser.log"))?;
        let child = bound_command(
            "sh",
            [
                "-c",
                "exec timeout \"$0\" chromium --headless --no-sandbox --disable-gpu \
                 --disable-dev-shm-usage --no-first-run --hide-scrollbars \
                 --user-data-dir=\"$3\" --remote-debugging-pipe about:blank 3<\"$1\" 4>\"$2\"",
                LIFETIME,
            ],
        )
        .args([&to, &from, &folder.join("profile")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Cannot start chromium")?;
        // In the order in which the shell opens the other ends.
        let to = OpenOptions::new().write(true).open(to)?;
        let from = BufReader::new(File::open(from)?);
        let mut browser = Browser {
            child,
            folder: folder.to_owned(),
            to,
            from,
            session: None,
            last_id: 0,
            events: Vec::new(),
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attached = browser.call(
            "Target.attachToTarget",
            &json!({"targetId": target["targetId"], "flatten": true}),
        )?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, &json!({}))?;
        }
        Ok(browser)
    }

    /// Sets the size of the window and which colours its user prefers.
    pub fn dress(&mut self, width: u32, height: u32, scheme: &str) -> Result<()> {
        self.call(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        )?;
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({"features": [feature]}),
        )
        .map(drop)
    }

    /// Loads a file, and returns what the page complained of.
    pub fn open(&mut self, file: &Path) -> Result<Vec<String>> {
        self.events.clear();
        let url = format!("file://{}", file.display());
        let answer = self.call("Page.navigate", &json!({"url": url}))?;
        ensure!(answer["errorText"].is_null(), "{}", answer["errorText"]);
        while !self
            .events
            .iter()
            .any(|event| event["method"] == "Page.loadEventFired")
        {
            self.receive()?;
        }
        // What runs right after the load is over now, too.
        self.evaluate("new Promise(done => setTimeout(done, 200))")?;
        Ok(self.problems())
    }

    /// Complaints since the page was loaded.
    pub fn problems(&self) -> Vec<String> {
        let is_problem = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                matches!(
                    event["params"]["type"].as_str(),
                    Some("error" | "warning" | "assert")
                )
            }
            Some("Log.entryAdded") => {
                matches!(
                    event["params"]["entry"]["level"].as_str(),
                    Some("error" | "warning")
                )
            }
            _ => false,
        };
        let problems = self.events.iter().filter(is_problem);
        problems.map(|event| event["params"].to_string()).collect()
    }

    /// Lets pages use the clipboard, as a user at the window would.
    pub fn allow_clipboard(&mut self) -> Result<()> {
        self.call(
            "Browser.grantPermissions",
            &json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}),
        )?;
        self.call(
            "Emulation.setFocusEmulationEnabled",
            &json!({"enabled": true}),
        )
        .map(drop)
    }

    /// What an expression of the page's own language gives.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let answer = self.call(
            "Runtime.evaluate",
            &json!({"expression": expression, "awaitPromise": true, "returnByValue": true,
                    "userGesture": true}),
        )?;
        ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {}",
            answer["exceptionDetails"]
        );
        Ok(answer["result"]["value"].clone())
    }

    /// The whole page as a picture in the browser's folder.
    pub fn photograph(&mut self, name: &str) -> Result<PathBuf> {
        let answer = self.call(
            "Page.captureScreenshot",
            &json!({"captureBeyondViewport": true}),
        )?;
        let data = answer["data"].as_str().context("There is no picture")?;
        let path = self.folder.join(name);
        let mut decode = command("sh", ["-c", "base64 -d > \"$0\""]);
        fed(decode.arg(&path), data)?;
        Ok(path)
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).context("The browser is gone")?;
        loop {
            let answer = self.receive()?;
            if answer["id"] == id {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].clone());
            }
        }
    }

    /// The next message; events are kept too.
    fn receive(&mut self) -> Result<Value> {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes)?;
        if bytes.pop() != Some(0) {
            let log = fs::read_to_string(self.folder.join("browser.log")).unwrap_or_default();
            bail!("The browser ended: {}", crate::command::tail(&log, 10));
        }
        let message: Value = serde_json::from_slice(&bytes).context("Not a message")?;
        if !message["method"].is_null() {
            self.events.push(message.clone());
        }
        Ok(message)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser's other processes as well.
        let _ = self.call("Browser.close", &json!({}));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
