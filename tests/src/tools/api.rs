//! The API against its description, as schemathesis tries it: hundreds of
//! requests, right and wrong ones, each answer held against docs/openapi.json;
//! and against a client that was made from Cloud Hypervisor's description.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::endpoint::{programs, wait_until};
use crate::command::{bound_command, command, output};
use crate::progress::step;
use crate::tools::Profile;
use crate::tree::Tree;

/// Newer ones find other things: a change of version is a change of its own.
const PACKAGE: &str = "schemathesis==4.32.5";
const CHECK: &str = "tests/api/check.py";

/// The server is the VMM's own with its own control thread, on a host that
/// cannot run a VM: what a guest does is not part of the description.
pub fn schemathesis_finds_no_violation(tree: &Tree) -> Result<()> {
    let python = environment(tree)?;
    let server = programs(tree, Profile::Debug).join("examples/api_without_kvm");
    let check = tree.root().join(CHECK);
    output(
        command(&python.to_string_lossy(), [check, server])
            // Colours and widths of whatever terminal this is are no part of it.
            .env("NO_COLOR", "1"),
    )
    .map(drop)
}

/// Everything that needs no guest: the suite `clients` makes the other calls.
pub fn unmodified_client_of_cloud_hypervisor_is_served(tree: &Tree) -> Result<()> {
    let folder = tree.fresh_log_dir("tools-unmodified-client")?;
    let socket = folder.join("api.sock");
    let programs = programs(tree, Profile::Debug);
    let server = programs.join("examples/api_without_kvm");
    let mut server = bound_command(&server.to_string_lossy(), ["--api-socket"])
        .arg(&socket)
        .spawn()
        .context("Cannot start api_without_kvm")?;
    let outcome = wait_until("the API is served", || UnixStream::connect(&socket).is_ok())
        .and_then(|()| {
            let client = programs.join("unmodified-client");
            output(&mut command(&client.to_string_lossy(), [&socket, &folder]))
        });
    // The client has shut it down, unless something failed.
    let _ = server.kill();
    let _ = server.wait();
    outcome.map(drop)
}

/// A Python environment with the program; made once.
fn environment(tree: &Tree) -> Result<PathBuf> {
    let folder = tree.cache().join(PACKAGE.replace("==", "-"));
    let python = folder.join("bin/python");
    // Names its place in itself, so it is made there; whole, once this exists.
    let whole = folder.join("whole");
    if whole.exists() {
        return Ok(python);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("Cannot remove {}", folder.display()))?;
    }
    step(&format!("Installing {PACKAGE}"), || {
        output(command("python3", ["-m", "venv"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", PACKAGE];
        output(&mut command(&python.to_string_lossy(), pip))
    })?;
    fs::write(&whole, "").with_context(|| format!("Cannot write {}", whole.display()))?;
    Ok(python)
}
