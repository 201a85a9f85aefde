//! `ch-remote`: controls a running virtual machine monitor over its API socket.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    api_client::remote::main()
}
