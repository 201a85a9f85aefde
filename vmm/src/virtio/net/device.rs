//! The device: identity, configuration, and the handle of the pairs' threads.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::counters::{NetCounters, PairCounters};
use super::header::{CTRL_VQ, MQ, Offloads, config_space, features, tap_offload};
use super::steering::Steering;
use super::tap::{InterfaceParams, Tap, TapError};
use super::worker::PairService;
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, inherited_descriptor};
use crate::state::{StateError, device_state, from_device_state};
use crate::virtio::rate_limit::{LimitParams, RateLimit, RateLimiter};
use crate::virtio::worker::Worker;
use crate::virtio::{
    ActivateError, Activation, DeviceCounters, GuestFaults, VirtioDevice, copy_config,
};

/// Commands come one at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The host's end of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapSource {
    /// A tap interface, by its name, which is made if there is none.
    Interface {
        /// Its name; made up if absent.
        name: Option<String>,
        /// How it is to look.
        params: InterfaceParams,
    },
    /// Queues of a tap interface that this process has open, one per pair. The
    /// device takes copies, so that the next one finds the originals.
    Descriptors(Vec<RawFd>),
}

/// What a device is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetParams {
    /// The host's end.
    pub tap: TapSource,
    /// The guest's hardware address. The configuration gets one before a device is
    /// made of it.
    pub mac: Option<[u8; 6]>,
    /// The largest packet; the interface's if absent.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub pairs: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Work that guest and host may leave to each other.
    pub offloads: Offloads,
    /// Limits, for each direction.
    pub limit: Option<LimitParams>,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host's end.
    #[error("The tap interface cannot be used")]
    Tap(#[from] TapError),
    /// A descriptor of the interface.
    #[error("The descriptor {0} cannot be used")]
    Descriptor(RawFd, #[source] io::Error),
    /// The configuration has none.
    #[error("It has no MAC address")]
    NoMac,
    /// No threads, events or timers.
    #[error("Cannot start the device's threads")]
    Start(#[from] io::Error),
}

/// What the driver has set of a network device.
#[derive(Serialize, Deserialize)]
struct NetState {
    /// Queue pairs in use.
    pairs: usize,
}

/// A network device.
pub struct Net {
    features: u64,
    config: [u8; 12],
    pairs: u16,
    queue_sizes: Vec<u16>,
    steering: Arc<Steering>,
    counters: Arc<NetCounters>,
    faults: Arc<GuestFaults>,
    workers: Vec<Worker>,
}

impl Net {
    /// A device called `id`.
    pub fn new(id: &str, params: &NetParams, events: &EventSink) -> Result<Self, NetError> {
        let pairs = params.pairs;
        let mac = params.mac.ok_or(NetError::NoMac)?;
        let taps = match &params.tap {
            TapSource::Interface { name, params } => {
                Tap::open(name.as_deref(), usize::from(pairs), params)?
            }
            TapSource::Descriptors(numbers) => numbers
                .iter()
                .map(|&number| {
                    let copy = inherited_descriptor(number)
                        .map_err(|source| NetError::Descriptor(number, source))?;
                    Ok(Tap::from_descriptor(copy)?)
                })
                .collect::<Result<_, NetError>>()?,
        };
        let mtu = params.mtu.or_else(|| taps.first().and_then(Tap::mtu));
        let steering = Arc::new(Steering::new(taps)?);
        let faults = Arc::new(GuestFaults::new(id));
        let counters: Vec<Arc<PairCounters>> = (0..pairs).map(|_| Arc::default()).collect();
        let limits = params
            .limit
            .map(|limit| (RateLimit::new(&limit), RateLimit::new(&limit)));
        let limiter = |limit: Option<&RateLimit>| limit.cloned().map(RateLimiter::new).transpose();
        let mut workers = Vec::new();
        for (pair, counters) in counters.iter().enumerate() {
            let service = PairService {
                pair,
                steering: Arc::clone(&steering),
                faults: Arc::clone(&faults),
                counters: Arc::clone(counters),
                receive_limiter: limiter(limits.as_ref().map(|(receive, _)| receive))?,
                transmit_limiter: limiter(limits.as_ref().map(|(_, transmit)| transmit))?,
                active: None,
            };
            let name = format!("{id}_qp{pair}");
            workers.push(Worker::spawn(
                &name,
                ThreadKind::VirtioNet,
                Arc::clone(&faults),
                events.clone(),
                service,
            )?);
        }
        let mut queue_sizes = vec![params.queue_size; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Ok(Self {
            features: features(params.offloads, mtu.is_some(), pairs > 1),
            config: config_space(mac, pairs, mtu.unwrap_or_default()),
            pairs,
            queue_sizes,
            steering,
            counters: Arc::new(NetCounters::new(counters)),
            faults,
            workers,
        })
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_length(&self) -> usize {
        self.config.len()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }

    fn workers(&self) -> &[Worker] {
        &self.workers
    }

    fn save(&self) -> Value {
        device_state(&NetState {
            pairs: self.steering.pairs_in_use(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), StateError> {
        const DEVICE: &str = "the network device";
        let NetState { pairs } = from_device_state(DEVICE, state)?;
        self.steering.use_pairs(pairs).map_err(|error| {
            StateError::unfit(DEVICE, &format_args!("{pairs} queue pairs: {error}"))
        })
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let agreed = activation.features;
        // Without several pairs the control queue is the third.
        let (pairs, control) = if agreed & MQ != 0 {
            (self.pairs, 2 * self.pairs)
        } else {
            (1, 2)
        };
        let mut control = if agreed & CTRL_VQ != 0 {
            activation.take_queue(control)
        } else {
            None
        };
        self.steering.use_pairs(1)?;
        self.steering.set_offload(tap_offload(agreed))?;
        for (pair, worker) in (0..pairs).zip(&self.workers) {
            let queues = (
                activation.take_queue(2 * pair),
                activation.take_queue(2 * pair + 1),
            );
            let (receive, transmit) = match queues {
                (Some(receive), Some(transmit)) => (receive, transmit),
                // A driver may leave out all but the first.
                _ if pair > 0 => continue,
                (None, _) => return Err(ActivateError::MissingQueue(0)),
                (_, None) => return Err(ActivateError::MissingQueue(1)),
            };
            let mut queues = vec![receive, transmit];
            queues.extend(control.take());
            worker.start(Activation {
                memory: Arc::clone(&activation.memory),
                features: agreed,
                queues,
                interrupt: Arc::clone(&activation.interrupt),
            })?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        Worker::stop_all(&self.workers);
    }

    fn counters(&self) -> Option<Arc<dyn DeviceCounters>> {
        Some(Arc::clone(&self.counters) as Arc<dyn DeviceCounters>)
    }
}
