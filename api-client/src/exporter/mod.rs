//! `ch-remote exporter`: all VMs of a host on one TCP port, for Prometheus.
//!
//! A scrape looks for sockets anew, so VMs come and go as they please. Each VM
//! is asked on a thread of its own with a deadline; one that hangs is reported
//! as down and not asked again until that thread has given up, so it costs one
//! thread and no scrape anything.

mod http;
mod scrape;

pub use scrape::{PatternError, Vms};

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use instrumentation::encode::{CONTENT_TYPE, openmetrics_of_host};

/// Scrapes served at once; a further one is told to come back.
const MOST_CONNECTIONS: usize = 16;
/// How long a scraper may take to send its request or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves scrapes until the listener fails.
pub fn serve(listener: &TcpListener, vms: &Arc<Vms>) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // The peer was gone before it was served: nobody's fault of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if open.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            http::refuse(
                &stream,
                "503 Service Unavailable",
                "Too many scrapes at once\n",
            );
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (vms, open) = (Arc::clone(vms), Arc::clone(&open));
        let done = Done(open);
        std::thread::Builder::new()
            .name("scrape".into())
            .spawn(move || {
                let _done = done;
                answer(&stream, &vms);
            })?;
    }
}

/// Gives a connection's place back, also if its thread panics.
struct Done(Arc<AtomicUsize>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(stream: &TcpStream, vms: &Arc<Vms>) {
    let limited = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if limited.is_err() {
        return;
    }
    match http::request(stream) {
        Ok(target) if target == "/metrics" => {
            let found = vms.scrape();
            let rows: Vec<_> = found
                .iter()
                .map(|(name, snapshot)| (name.as_str(), snapshot.as_ref()))
                .collect();
            http::respond(stream, "200 OK", CONTENT_TYPE, &openmetrics_of_host(&rows));
        }
        Ok(target) if target == "/" => http::respond(
            stream,
            "200 OK",
            "text/html; charset=utf-8",
            "<!doctype html><title>VM exits</title><a href=\"/metrics\">Metrics</a>\n",
        ),
        Ok(_) => http::refuse(
            stream,
            "404 Not Found",
            "There is /metrics and nothing else\n",
        ),
        Err(http::RequestError::Method) => {
            http::refuse(stream, "405 Method Not Allowed", "Only GET is answered\n");
        }
        Err(http::RequestError::Malformed) => {
            http::refuse(stream, "400 Bad Request", "This is no HTTP request\n");
        }
        Err(http::RequestError::Gone) => {}
    }
}

#[cfg(test)]
mod tests;
