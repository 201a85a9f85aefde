//! Devices that come and go without anybody waiting for the guest.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::shell::{Guest, sparse};
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "hotplug",
    applies: Site::tries_devices,
    trials: trials![disk_added_right_after_an_unplug_stays],
};

const ROUNDS: u32 = 20;
const SIZE: u64 = 1 << 20;

fn disk_added_right_after_an_unplug_stays(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(site, json!({}))?;
    let add = |guest: &Guest, round: u32| -> Result<()> {
        let image = guest.dir.join(format!("disk{round}"));
        sparse(&image, SIZE)?;
        let body = json!({"id": format!("disk{round}"), "path": image}).to_string();
        guest
            .machine
            .must("PUT", "/api/v1/vm.add-disk", Some(&body))?;
        Ok(())
    };
    add(&guest, 0)?;
    for round in 1..=ROUNDS {
        let body = json!({"id": format!("disk{}", round - 1)}).to_string();
        guest
            .machine
            .must("PUT", "/api/v1/vm.remove-device", Some(&body))?;
        add(&guest, round)?;
        let id = format!("disk{round}");
        let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
        let tree = info["device_tree"].as_object();
        ensure!(
            tree.is_some_and(|tree| tree.contains_key(&id)),
            "Round {round}: {info}"
        );
        guest.counter(&id, "read_ops")?;
    }
    // The guest, however late it is, ends up with the last one.
    guest.run_until("ls /sys/block | grep '^vd' | wc -l", "1")
}
