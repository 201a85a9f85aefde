//! The program's own messages: to standard error or a file, one line each, with
//! the time since the program started.

use std::io::Write;
use std::time::Instant;

use anyhow::Context;
use env_logger::{Builder, Target};
use log::LevelFilter;
use vmm::host_file::create_output;

use crate::args::Args;

/// Starts logging as the arguments say.
pub fn start(args: &Args) -> anyhow::Result<()> {
    let level = match args.verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let target = match &args.log_file {
        None => Target::Stderr,
        Some(path) => {
            let file = create_output(path)
                .with_context(|| format!("Cannot create the log file {}", path.display()))?;
            Target::Pipe(Box::new(file))
        }
    };
    let start = Instant::now();
    Builder::new()
        .filter_level(level)
        .target(target)
        .format(move |out, record| {
            let thread = std::thread::current();
            writeln!(
                out,
                "cloud-hypervisor: {:.6}s: <{}> {}:{}:{} -- {}",
                start.elapsed().as_secs_f64(),
                thread.name().unwrap_or("anonymous"),
                record.level(),
                record.file().unwrap_or("unknown"),
                record.line().unwrap_or(0),
                record.args()
            )
        })
        .try_init()
        .context("Cannot start the log")
}
