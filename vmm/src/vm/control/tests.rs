use std::io::Write;
use std::thread::scope;

use api_client::config::{RestoreConfig, VmSnapshotConfig};
use hypervisor::x86::CpuidEntry;
use hypervisor::{Error, ExitStatsSupport, Vm};
use instrumentation::table::Isa;

use super::*;
use crate::api::{
    ApiSender, ErrorKind, ReplySender, RequestHandler, StatusBoard, VmAction, api_channel,
};
use crate::event::EventSink;

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

const NEED_A_RUNNING_VM: [VmAction; 8] = [
    VmAction::Snapshot(VmSnapshotConfig {
        destination_url: String::new(),
    }),
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

/// Has a control thread run, and `act` with what it hears.
fn run(
    vmm: &mut Vmm,
    act: impl FnOnce(&EventSink, &ApiSender, &mut UnixStream) + Send,
) -> Result<Ended, ControlError> {
    let (end, mut end_sender) = UnixStream::pair().unwrap();
    let (window, _window_sender) = UnixStream::pair().unwrap();
    let (sender, requests) = api_channel().unwrap();
    let sink = vmm.queue.sink(EVERY_MACHINE);
    scope(|scope| {
        scope.spawn(|| act(&sink, &sender, &mut end_sender));
        vmm.run(&requests, &StatusBoard::default(), &Signals { end, window })
    })
}

#[test]
fn signal_ends_the_control_thread_and_the_vm_is_deleted() {
    let mut vmm = vmm();
    vmm.create(config()).unwrap();
    let ended = run(&mut vmm, |_, _, signal| signal.write_all(b"x").unwrap());
    assert_eq!(ended.unwrap(), Ended::Signal);
    assert!(vmm.config.is_none());
}

#[test]
fn request_to_end_is_answered_before_the_control_thread_ends() {
    let (answered, answer) = std::sync::mpsc::channel();
    let ended = run(&mut vmm(), move |_, sender, _| {
        let reply = ReplySender::new(move |outcome| answered.send(outcome.is_ok()).unwrap());
        sender.send(VmAction::VmmShutdown, reply);
    });
    assert_eq!(ended.unwrap(), Ended::Request);
    assert_eq!(answer.try_recv(), Ok(true));
}

#[test]
fn failure_of_a_machine_ends_the_control_thread_with_its_reason() {
    let mut vmm = vmm();
    vmm.queue
        .sink(EVERY_MACHINE)
        .send(MachineEvent::Failed("as told".into()));
    let ended = run(&mut vmm, |_, _, _| {});
    let text = ended.unwrap_err().to_string();
    assert_eq!(text, "The virtual machine failed: as told");
}

#[test]
fn what_is_no_snapshot_is_refused_and_leaves_no_vm() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    let url = format!("file://{}", folder.path().display());
    let mut vmm = vmm();
    let mut refused = |url: &str| {
        let wanted = RestoreConfig {
            source_url: url.to_owned(),
            ..RestoreConfig::default()
        };
        let action = VmAction::Restore(Box::new(wanted), Descriptors::default());
        refusal(&mut vmm, action)
    };
    for (bad, expected) in [
        ("/relative", "is not the URL"),
        ("file://relative", "is not the URL"),
        ("http://host/x", "is not the URL"),
        ("file:///no/such/folder", "is not a directory"),
    ] {
        let (kind, text) = refused(bad);
        assert_eq!(kind, ErrorKind::BadRequest, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let (kind, text) = refused(&url);
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    assert!(text.contains("contains no snapshot"), "{text}");
    for (content, expected) in [
        ("", "is damaged"),
        ("{}", "missing field `format`"),
        (
            "{\"format\": 0, \"version\": \"0.0.1\"}",
            "made by version 0.0.1",
        ),
        ("{\"format\": 1}", "is damaged"),
    ] {
        std::fs::write(&state, content).unwrap();
        let (kind, text) = refused(&url);
        assert_eq!(kind, ErrorKind::BadRequest, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    assert!(vmm.status().info.is_none());
}
