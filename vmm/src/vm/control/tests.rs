use hypervisor::x86::CpuidEntry;
use hypervisor::{Error, ExitStatsSupport, Vm};
use instrumentation::table::Isa;

use super::*;

/// Boots nothing.
struct NoHypervisor;

impl Hypervisor for NoHypervisor {
    fn create_vm(&self) -> hypervisor::Result<Arc<dyn Vm>> {
        Err(Error::MissingCapability("everything"))
    }

    fn supported_cpuid(&self) -> hypervisor::Result<Vec<CpuidEntry>> {
        Ok(Vec::new())
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        false
    }

    fn max_vcpus(&self) -> usize {
        64
    }

    fn exit_stats_support(&self) -> ExitStatsSupport {
        ExitStatsSupport::from_raw(0)
    }

    fn isa(&self) -> Option<Isa> {
        None
    }
}

fn vmm() -> Vmm {
    Vmm::new(Arc::new(NoHypervisor), Arc::new(StatsHub::new()), false).unwrap()
}

fn config() -> Box<VmConfig> {
    let mut config = VmConfig::default();
    config.console.mode = api_client::config::ConsoleOutputMode::Off;
    config.payload = Some(api_client::config::PayloadConfig {
        kernel: Some("/no/such/kernel".into()),
        ..Default::default()
    });
    Box::new(config)
}

const NEED_A_RUNNING_VM: [VmAction; 7] = [
    VmAction::Pause,
    VmAction::Resume,
    VmAction::Shutdown,
    VmAction::Reboot,
    VmAction::Pulse,
    VmAction::PowerButton,
    VmAction::Nmi,
];

fn refusal(vmm: &mut Vmm, action: VmAction) -> (ErrorKind, String) {
    let error = vmm.handle(action).unwrap_err();
    (error.kind, error.chain.join(": "))
}

#[test]
fn vm_that_does_not_run_is_named_the_same_way_by_every_action() {
    for action in NEED_A_RUNNING_VM {
        let mut vmm = vmm();
        let (kind, text) = refusal(&mut vmm, action.clone());
        assert_eq!(kind, ErrorKind::NotFound, "{action:?}");
        assert!(text.contains("The VM is not created"), "{action:?}: {text}");
        vmm.create(config()).unwrap();
        let (kind, text) = refusal(&mut vmm, action.clone());
        assert_eq!(kind, ErrorKind::Internal, "{action:?}");
        assert!(text.contains("The VM is not running"), "{action:?}: {text}");
    }
}

/// The events that a monitor writes while `act` runs.
fn events(act: impl FnOnce(&mut Vmm)) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let mut vmm = vmm();
    vmm.monitor_events(File::create(&path).unwrap()).unwrap();
    act(&mut vmm);
    drop(vmm);
    let text = std::fs::read_to_string(&path).unwrap();
    serde_json::Deserializer::from_str(&text)
        .into_iter::<serde_json::Value>()
        .map(|event| {
            let event = event.unwrap();
            let part = |name: &str| event[name].as_str().unwrap().to_owned();
            format!("{} {}", part("source"), part("event"))
        })
        .collect()
}

#[test]
fn boot_that_fails_says_that_it_began_and_one_without_a_vm_says_nothing() {
    let said = events(|vmm| {
        vmm.boot().unwrap_err();
        vmm.create(config()).unwrap();
        vmm.boot().unwrap_err();
        vmm.delete().unwrap();
        vmm.delete().unwrap();
    });
    assert_eq!(said, ["vmm starting", "vm booting", "vm deleted"]);
}
