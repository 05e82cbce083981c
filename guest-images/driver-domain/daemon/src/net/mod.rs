//! virtio-net (VIRTIO 1.2, section 5.1): a guest's network card.
//!
//! | file | what |
//! |---|---|
//! | `receive.rs` | frames from the TAP interface into the guest's buffers |
//! | `transmit.rs` | frames from the guest to the TAP interface |
//! | `filter.rs`, `neighbours.rs` | whose frames they may be, and what they may tell neighbours |
//! | `control.rs` | the control queue: how many pairs of queues are in use |
//!
//! A card's other end is a TAP interface in a bridge of the driver domain's. Headers of TAP and of virtqueues are the same, so
//! checksums and segments that are still one go through as they are; a frame is copied once, by the kernel, from or to the
//! guest's memory. Bridge, VLAN, rate and a second filter of addresses are Linux's: the driver domain's script `caisson-network`
//! sets them up ([`Net::open`]), and its first lines say how it is called.

mod control;
mod filter;
mod neighbours;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::path::Path;
use std::process::Command;

use caisson_abi::io::device_of;
use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::{Description, Device, Fault, Progress};
use crate::kinds::OpenError;
use crate::parameters::{ParameterError, Parameters};
use crate::ring::{QueueSetup, Ring};
use crate::statistics::Counters;
use crate::sys::{Offloads, Tap};

use control::Control;
use filter::Filter;
use receive::Receiver;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Entries of a queue for frames, and of the control queue.
const QUEUE: u16 = 256;
const CONTROL_QUEUE: u16 = 16;
/// The most pairs of queues.
const MAX_PAIRS: u64 = 8;
/// Bytes of the header before a frame (section 5.1.6).
const HEADER: usize = 12;
/// The script that puts an interface into its bridge, and takes it out.
const SCRIPT: &str = "caisson-network";

/// A network card.
pub struct Net {
    pairs: Vec<Pair>,
    control: Control,
    filter: Filter,
    mtu: u16,
    /// What the script was told of; none in tests.
    _interface: Option<Interface>,
    /// The features that the driver has taken.
    features: u64,
}

/// A queue for each direction, and the interface's.
struct Pair {
    tap: Tap,
    receiver: Receiver,
    transmit: Option<Ring>,
}

/// What the parameters say.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Settings {
    bridge: String,
    mac: Mac,
    anti_spoofing: bool,
    rate: Option<u64>,
    vlan: Option<u64>,
    queues: usize,
}

impl Settings {
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        let mac = parameters.text("mac")?;
        let value = |key, wanted| ParameterError::Value {
            key,
            value: parameters.get(key).unwrap_or_default().to_owned(),
            wanted,
        };
        let queues = parameters.number("queues")?.unwrap_or(1);
        if !(1..=MAX_PAIRS).contains(&queues) {
            return Err(value("queues", "a number from 1 to 8"));
        }
        let vlan = parameters.number("vlan")?;
        if vlan.is_some_and(|vlan| !(1..=4094).contains(&vlan)) {
            return Err(value("vlan", "a number from 1 to 4094"));
        }
        Ok(Self {
            bridge: parameters.text("bridge")?.to_owned(),
            mac: parse_mac(mac).ok_or_else(|| value("mac", "an address such as 02:00:00:00:00:01"))?,
            anti_spoofing: parameters.flag("anti_spoofing", true)?,
            rate: parameters.number("rate")?,
            vlan,
            queues: queues as usize,
        })
    }
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Net {
    /// The card that the parameters describe: makes its interface `vifDOMAIN.SLOT`, and has it put into its bridge.
    ///
    /// # Errors
    /// What is wrong with the parameters, or what the kernel or the script say.
    pub fn open(channel: u16, parameters: &Parameters) -> Result<Self, OpenError> {
        let settings = Settings::read(parameters)?;
        let (domain, slot) = device_of(channel);
        let name = format!("vif{}.{slot}", domain.0);
        let taps = Tap::open(&name, settings.queues).map_err(|error| format!("interface {name}: {error}"))?;
        let or_none = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let (rate, vlan) = (or_none(settings.rate), or_none(settings.vlan));
        let (mac, check) = (show_mac(settings.mac), settings.anti_spoofing.to_string());
        script(&["up", &name, &settings.bridge, &mac, &check, &rate, &vlan])?;
        let interface = Interface(name.clone());
        let mtu = std::fs::read_to_string(Path::new("/sys/class/net").join(&name).join("mtu"))?;
        let mtu = mtu.trim().parse().map_err(|_| format!("interface {name}: MTU {mtu:?}"))?;
        Ok(Self::new(taps, &settings, mtu, Some(interface)))
    }

    fn new(taps: Vec<Tap>, settings: &Settings, mtu: u16, interface: Option<Interface>) -> Self {
        let pair = |tap| Pair { tap, receiver: Receiver::new(), transmit: None };
        Self {
            pairs: taps.into_iter().map(pair).collect(),
            control: Control::new(settings.queues),
            filter: Filter::new(settings.mac, settings.anti_spoofing, settings.vlan.is_some()),
            mtu,
            _interface: interface,
            features: 0,
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 != 0
    }

    /// Which queue the control queue is (section 5.1.2).
    fn control_queue(&self) -> u16 {
        if self.has(VIRTIO_NET_F_MQ) { self.pairs.len() as u16 * 2 } else { 2 }
    }

    fn is_running(&self) -> bool {
        let pair = |pair: &Pair| pair.receiver.is_running() || pair.transmit.is_some();
        self.control.is_running() || self.pairs.iter().any(pair)
    }

    /// The driver begins anew: with one pair of queues, and with what it has taken.
    fn begin(&mut self, features: u64) -> Result<(), Fault> {
        self.features = features;
        let offloads = Offloads {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: self.has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: self.has(VIRTIO_NET_F_GUEST_ECN),
        };
        let largest = receive::largest_frame(self.mtu, offloads.tso4 || offloads.tso6);
        let merges = self.has(VIRTIO_NET_F_MRG_RXBUF);
        for pair in &mut self.pairs {
            pair.receiver.begin(merges, largest);
        }
        if let Some(pair) = self.pairs.first() {
            pair.tap.set_offloads(offloads).map_err(Fault::Backend)?;
        }
        self.use_pairs(1)
    }

    /// So many pairs are in use.
    fn use_pairs(&self, count: usize) -> Result<(), Fault> {
        if self.pairs.len() == 1 {
            return Ok(());
        }
        for (index, pair) in self.pairs.iter().enumerate() {
            pair.tap.set_used(index < count).map_err(Fault::Backend)?;
        }
        Ok(())
    }
}

/// Runs the script.
fn script(arguments: &[&str]) -> Result<(), OpenError> {
    let ran = Command::new(SCRIPT).args(arguments).output().map_err(|error| format!("{SCRIPT}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let last = said.lines().last().unwrap_or("it says nothing");
    Err(format!("{SCRIPT} {}: {last}", arguments.join(" ")).into())
}

/// An interface that the script knows, until this is dropped.
struct Interface(String);

impl Drop for Interface {
    fn drop(&mut self) {
        // What it cannot forget, it forgets when an interface of that name comes again.
        let _ = script(&["down", &self.0]);
    }
}

impl Device for Net {
    fn description(&self) -> Description {
        let mut offered = vec![
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ];
        let mut queues = vec![QUEUE; self.pairs.len() * 2];
        if self.pairs.len() > 1 {
            offered.extend([VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]);
            queues.push(CONTROL_QUEUE);
        }
        // `struct virtio_net_config` (section 5.1.4).
        let mut config = self.filter.mac().to_vec();
        config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.extend((self.pairs.len() as u16).to_le_bytes());
        config.extend(self.mtu.to_le_bytes());
        let features = offered.into_iter().fold(0, |features, bit| features | 1_u64 << bit);
        Description { kind: VIRTIO_ID_NET, features, queues, config }
    }

    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault> {
        if !self.is_running() {
            self.begin(setup.features)?;
        }
        let ring = Ring::new(setup)?;
        if setup.index == self.control_queue() && self.has(VIRTIO_NET_F_CTRL_VQ) {
            self.control.start(ring);
            return Ok(());
        }
        // A queue that nobody has is never notified.
        if let Some(pair) = self.pairs.get_mut(usize::from(setup.index / 2)) {
            if setup.index.is_multiple_of(2) {
                pair.receiver.start(ring);
            } else {
                pair.transmit = Some(ring);
            }
        }
        Ok(())
    }

    fn stop(&mut self, queue: u16) {
        if queue == self.control_queue() && self.has(VIRTIO_NET_F_CTRL_VQ) {
            return self.control.stop();
        }
        if let Some(pair) = self.pairs.get_mut(usize::from(queue / 2)) {
            if queue.is_multiple_of(2) {
                pair.receiver.stop();
            } else {
                pair.transmit = None;
            }
        }
    }

    fn work(&mut self, _told: u64, counters: &Counters) -> Result<Progress, Fault> {
        let mut progress = Progress::default();
        if let Some(pairs) = self.control.work(&mut progress)? {
            self.use_pairs(pairs)?;
        }
        for pair in &mut self.pairs {
            if let Some(ring) = &mut pair.transmit {
                transmit::work(ring, &pair.tap, &self.filter, counters, &mut progress)?;
            }
            pair.receiver.work(&pair.tap, counters, &mut progress)?;
        }
        Ok(progress)
    }

    fn arm(&mut self) -> Result<bool, Fault> {
        let mut any = self.control.arm()?;
        for pair in &mut self.pairs {
            if let Some(ring) = &mut pair.transmit {
                any |= ring.arm()?;
            }
            any |= pair.receiver.arm()?;
        }
        Ok(any)
    }

    fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        for pair in &self.pairs {
            if pair.receiver.wants_frames() {
                into.push(PollFd::new(&pair.tap, PollFlags::IN));
            }
        }
    }
}
