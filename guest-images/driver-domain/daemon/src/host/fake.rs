//! Caisson for tests: devices' transports are those of `caisson_virtio`, and a guest is a struct that writes their registers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_abi::control::{ConsoleHeader, DomainRecord, MAX_BLOB, MachineRecord, ended, flag, state};
use caisson_abi::events::{ANY, PAGE_WORDS, PENDING, Source};
use caisson_abi::io::{
    CHANGES, ChannelDescription, ChannelRecord, MemoryRange, QueueState, device_of, record,
};
use caisson_abi::{CallError, CallResult, Number};
use caisson_types::{Gpa, GuestMemory, MemoryError};
use caisson_virtio::{Channel, Description, Effect, Interrupt, RegisterPage, register};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::{FromBytes, IntoBytes};

use super::{Call, Host};
use crate::bell::Bell;
use crate::sys::{Mapping, Memory, Piece};

/// The address of a guest's memory, and how much there is.
pub const RAM: (u64, usize) = (0x10_0000, 4 << 20);

/// The machine.
pub struct Fake {
    inner: Mutex<Inner>,
    events: Box<[AtomicU64; PAGE_WORDS]>,
    pin: Bell,
    /// All guests' memory: a guest's is at its domain's number times its size.
    memory: File,
}

#[derive(Default)]
struct Inner {
    devices: BTreeMap<u16, FakeDevice>,
    ports: Vec<Option<Source>>,
    domains: Vec<FakeDomain>,
    /// The blob that has been begun, and whether a domain has been made of it.
    blob: Option<(Vec<u8>, bool)>,
}

/// A domain that can be controlled.
struct FakeDomain {
    record: DomainRecord,
    written: Vec<u8>,
    typed: Vec<u8>,
    /// How often it is still too early to go on.
    busy: u32,
}

struct FakeDevice {
    record: ChannelRecord,
    parameters: String,
    description: Option<ChannelDescription>,
    channel: Option<Arc<Channel>>,
    interrupts: u64,
}

/// A guest's view of its memory, for the transport.
struct View<'a>(&'a Memory);

impl GuestMemory for View<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.0.regions().read_slice(buf, GuestAddress(gpa.as_u64())).map_err(|_| MemoryError { gpa })
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        self.0.regions().write_slice(data, GuestAddress(gpa.as_u64())).map_err(|_| MemoryError { gpa })
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        self.0.regions().get_slices(GuestAddress(gpa.as_u64()), len as usize).all(|slice| slice.is_ok())
    }

    // The transport asks where RAM is, and no more.

    fn compare_exchange_u32(&self, gpa: Gpa, _: u32, _: u32) -> Result<bool, MemoryError> {
        Err(MemoryError { gpa })
    }

    fn compare_exchange_u64(&self, gpa: Gpa, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError { gpa })
    }

    fn swap_u8(&self, gpa: Gpa, _: u8) -> Result<u8, MemoryError> {
        Err(MemoryError { gpa })
    }
}

impl Fake {
    /// Without devices.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            events: Box::new([const { AtomicU64::new(0) }; PAGE_WORDS]),
            pin: Bell::new().unwrap(),
            memory: crate::testing::file(16 * RAM.1 as u64),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device of a guest that has not started.
    pub fn add(&self, channel: u16, kind: u32, name: &str, parameters: &str) {
        let mut record =
            ChannelRecord { channel, domain: device_of(channel).0.0, kind, ..ChannelRecord::default() };
        record.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        record.parameters = parameters.len() as u32;
        let parameters = parameters.to_owned();
        let device = FakeDevice { record, parameters, description: None, channel: None, interrupts: 0 };
        self.inner().devices.insert(channel, device);
        self.deliver(Source::Backend);
    }

    /// The configuration says something else of a device.
    pub fn set_parameters(&self, channel: u16, parameters: &str) {
        let mut inner = self.inner();
        let device = inner.devices.get_mut(&channel).unwrap();
        device.parameters = parameters.to_owned();
        device.record.parameters = parameters.len() as u32;
    }

    /// The guest of a device that has been described starts.
    pub fn start(self: &Arc<Self>, channel: u16) -> Guest {
        let mut inner = self.inner();
        let device = inner.devices.get_mut(&channel).unwrap();
        device.record.life += 1;
        let description = device.description.unwrap();
        let queues = usize::from(description.queues);
        let described = Description {
            device: description.device,
            features: description.features,
            queues: &description.queue_sizes[..queues],
            config: &description.config[..usize::from(description.config_bytes)],
            writable: &[],
        };
        let transport = Arc::new(Channel::new(&described, RegisterPage::boxed()).unwrap());
        device.channel = Some(Arc::clone(&transport));
        let range = range_of(channel);
        drop(inner);
        let memory = Arc::new(self.map(&[range]).unwrap());
        memory.regions().write_slice(&vec![0; RAM.1], GuestAddress(RAM.0)).unwrap();
        self.deliver(Source::Backend);
        Guest { fake: Arc::clone(self), channel, transport, memory }
    }

    /// The guest of a device ends.
    pub fn end(&self, channel: u16) {
        self.inner().devices.get_mut(&channel).unwrap().record.state |= record::ENDED;
        self.deliver(Source::Channel { channel, queue: CHANGES });
        self.deliver(Source::Backend);
    }

    /// The guest of a device will not come again.
    pub fn gone(&self, channel: u16) {
        self.inner().devices.get_mut(&channel).unwrap().record.state |= record::GONE;
        self.deliver(Source::Backend);
    }

    /// The device is not the daemon's any more.
    pub fn lose(&self, channel: u16) {
        let mut inner = self.inner();
        let device = inner.devices.get_mut(&channel).unwrap();
        device.record.state &= !record::ATTACHED;
        let _ = device.channel.as_ref().unwrap().detach();
        drop(inner);
        self.deliver(Source::Channel { channel, queue: CHANGES });
    }

    /// The daemon has died: nothing of it is left but what Caisson knows.
    pub fn forget_ports(&self) {
        self.inner().ports.clear();
    }

    /// A device's record.
    pub fn record(&self, channel: u16) -> ChannelRecord {
        self.inner().devices[&channel].record
    }

    /// How often a device's guest was interrupted.
    pub fn interrupts(&self, channel: u16) -> u64 {
        self.inner().devices[&channel].interrupts
    }

    /// How many ports there are.
    pub fn open_ports(&self) -> usize {
        self.inner().ports.iter().flatten().count()
    }

    fn deliver(&self, source: Source) {
        let ports: Vec<_> = {
            let inner = self.inner();
            inner
                .ports
                .iter()
                .enumerate()
                .filter(|(_, port)| **port == Some(source))
                .map(|(port, _)| port)
                .collect()
        };
        for port in ports {
            self.events[PENDING + port / 64].fetch_or(1 << (port % 64), Ordering::SeqCst);
            if self.events[ANY].fetch_or(1, Ordering::SeqCst) & 1 == 0 {
                self.pin.ring(1);
            }
        }
    }

    /// A domain to control.
    pub fn add_domain(&self, record: DomainRecord) {
        let domain = FakeDomain { record, written: Vec::new(), typed: Vec::new(), busy: 0 };
        self.inner().domains.push(domain);
    }

    /// A domain writes to its console.
    pub fn print(&self, id: u16, bytes: &[u8]) {
        let mut inner = self.inner();
        let domain = inner.domains.iter_mut().find(|domain| domain.record.id == id).unwrap();
        domain.written.extend_from_slice(bytes);
    }

    /// What was typed on a domain's console.
    pub fn typed(&self, id: u16) -> Vec<u8> {
        self.inner().domains.iter().find(|domain| domain.record.id == id).unwrap().typed.clone()
    }

    /// The blob that has been begun.
    pub fn blob(&self) -> Option<Vec<u8>> {
        self.inner().blob.as_ref().map(|(bytes, _)| bytes.clone())
    }

    /// A call about a blob, of which domains with small numbers can be made; `None` where it is about something else.
    fn making(inner: &mut Inner, call: &mut Call) -> Option<CallResult> {
        let [first, _, third, _] = call.arguments;
        Some(match (call.number, &mut inner.blob) {
            (Number::BlobBegin, blob) => {
                *blob = None;
                match first {
                    0 => Err(CallError::Invalid),
                    1..=MAX_BLOB => {
                        *blob = Some((vec![0; first as usize], false));
                        Ok(0)
                    }
                    _ => Err(CallError::TooBig),
                }
            }
            (Number::BlobWrite | Number::BlobEnd | Number::DomainCreate, None) => {
                Err(CallError::NotConnected)
            }
            (Number::BlobWrite, Some((_, true))) => Err(CallError::Busy),
            (Number::BlobWrite, Some((blob, _))) => {
                let end = first.checked_add(third).filter(|&end| end <= blob.len() as u64);
                end.ok_or(CallError::Invalid).map(|end| {
                    blob[first as usize..end as usize].copy_from_slice(&call.data[..third as usize]);
                    0
                })
            }
            (Number::BlobEnd, blob) => {
                *blob = None;
                Ok(0)
            }
            (Number::DomainCreate, Some(_)) if first > 7 => {
                let line = format!("domain[{first}].memory: there is too little left\0");
                call.data.iter_mut().zip(line.bytes()).for_each(|(to, from)| *to = from);
                Err(CallError::Refused)
            }
            (Number::DomainCreate, Some((_, made))) => {
                *made = true;
                let id = inner.domains.len() as u16 + 1;
                let record = DomainRecord { id, state: state::WAITING, ..DomainRecord::default() };
                inner.domains.push(FakeDomain { record, written: Vec::new(), typed: Vec::new(), busy: 0 });
                Ok(id.into())
            }
            (Number::DomainForget, _) => {
                let is = |domain: &FakeDomain| u64::from(domain.record.id) == first;
                let at = inner.domains.iter().position(is);
                match at.map(|at| (at, inner.domains[at].record.state)) {
                    None => Err(CallError::NoSuchDomain),
                    Some((at, state::GONE)) => {
                        inner.domains.remove(at);
                        Ok(0)
                    }
                    Some(_) => Err(CallError::Busy),
                }
            }
            _ => return None,
        })
    }

    /// A call about domains.
    fn control(inner: &mut Inner, call: &mut Call) -> CallResult {
        if let Some(result) = Self::making(inner, call) {
            return result;
        }
        let [first, second, third, _] = call.arguments;
        let data = &mut call.data;
        let mut put = |bytes: &[u8]| data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let count = inner.domains.len();
        match call.number {
            Number::MachineInfo => {
                put(MachineRecord { domains: count as u32, ..MachineRecord::default() }.as_bytes());
                return Ok(size_of::<MachineRecord>() as u64);
            }
            Number::DomainList => {
                let records: Vec<_> = inner.domains.iter().map(|domain| domain.record).collect();
                put(records.as_bytes());
                return Ok(count as u64);
            }
            _ => {}
        }
        let domain = inner.domains.iter_mut().find(|domain| u64::from(domain.record.id) == first);
        let domain = domain.ok_or(CallError::NoSuchDomain)?;
        let record = &mut domain.record;
        match call.number {
            Number::VcpuList => return Ok(0),
            Number::ConsoleRead => {
                let written = &domain.written[second as usize..];
                let header = ConsoleHeader { first: second, end: domain.written.len() as u64 };
                put(&[header.as_bytes(), written].concat());
                return Ok(written.len() as u64);
            }
            Number::ConsoleWrite => {
                domain.typed.extend_from_slice(&data[..third as usize]);
                return Ok(third);
            }
            _ if record.flags & flag::CALLER != 0 => return Err(CallError::Invalid),
            Number::DomainStart if record.state != state::GONE => return Err(CallError::Busy),
            Number::DomainStart => record.state = state::RUNNING,
            _ if record.state == state::GONE => return Err(CallError::NoSuchDomain),
            Number::DomainPause => (record.state, domain.busy) = (state::PAUSED, 3),
            Number::DomainResume if domain.busy > 0 => {
                domain.busy -= 1;
                return Err(CallError::Busy);
            }
            Number::DomainResume => record.state = state::RUNNING,
            Number::DomainDestroy => (record.state, record.ended) = (state::GONE, ended::DESTROYED),
            _ => {}
        }
        Ok(0)
    }

    fn perform(&self, call: &mut Call) -> CallResult {
        let [first, second, ..] = call.arguments;
        let mut inner = self.inner();
        if call.number >= Number::MachineInfo {
            return Self::control(&mut inner, call);
        }
        let data = &mut call.data;
        let mut put = |bytes: &[u8]| data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let bind = |inner: &mut Inner, source| {
            let free = inner.ports.iter().position(Option::is_none).unwrap_or(inner.ports.len());
            inner.ports.resize(inner.ports.len().max(free + 1), None);
            inner.ports[free] = Some(source);
            Ok(free as u64)
        };
        match call.number {
            Number::EventConnect => {
                inner.ports.clear();
                self.events.iter().for_each(|word| word.store(0, Ordering::SeqCst));
                return Ok(0);
            }
            Number::EventBindBackend => return bind(&mut inner, Source::Backend),
            Number::EventClose => {
                *inner.ports.get_mut(first as usize).ok_or(CallError::BadPort)? = None;
                return Ok(0);
            }
            Number::ChannelList => {
                let records: Vec<_> = inner.devices.values().map(|device| device.record).collect();
                put(records.as_bytes());
                return Ok(records.len() as u64);
            }
            _ => {}
        }
        let channel = first as u16;
        if call.number == Number::EventBindChannel {
            inner.devices.get(&channel).ok_or(CallError::Refused)?;
            return bind(&mut inner, Source::Channel { channel, queue: second as u16 });
        }
        let device = inner.devices.get_mut(&channel).ok_or(CallError::Refused)?;
        let attached = device.record.state & record::ATTACHED != 0;
        match call.number {
            Number::ChannelParameters => {
                put(device.parameters.as_bytes());
                return Ok(device.parameters.len() as u64);
            }
            Number::ChannelDescribe => {
                let described = ChannelDescription::read_from_bytes(data).map_err(|_| CallError::Fault)?;
                device.record.state |= record::DESCRIBED;
                match device.description.replace(described) {
                    Some(before) if device.record.life != 0 && before != described => {
                        return Err(CallError::Busy);
                    }
                    _ => return Ok(0),
                }
            }
            Number::ChannelAttach => {
                let transport = device.channel.as_ref().ok_or(CallError::NoSuchDomain)?;
                transport.attach();
                device.record.state |= record::ATTACHED;
                return Ok(device.record.life.into());
            }
            _ if !attached => return Err(CallError::NotConnected),
            Number::ChannelMemory => {
                put(range_of(channel).as_bytes());
                return Ok(1);
            }
            _ => {}
        }
        let transport = device.channel.clone().ok_or(CallError::NotConnected)?;
        match call.number {
            Number::ChannelDetach => {
                let _ = transport.detach();
                device.record.state &= !record::ATTACHED;
                if device.record.state & record::ENDED != 0 {
                    device.record.state &= !record::ENDED;
                    device.record.life = 0;
                    device.channel = None;
                }
                Ok(0)
            }
            Number::ChannelState if device.record.state & record::ENDED != 0 => Err(CallError::PeerClosed),
            Number::ChannelState => {
                let mut state = transport.snapshot();
                state.pending = transport.take_notifications();
                let queues: Vec<QueueState> =
                    (0..state.queues as u16).filter_map(|queue| transport.queue(queue)).collect();
                let all: Vec<u8> = state.as_bytes().iter().chain(queues.as_bytes()).copied().collect();
                put(&all);
                Ok(all.len() as u64)
            }
            Number::ChannelAcknowledge => {
                let _ = transport.acknowledge(second as u32);
                Ok(0)
            }
            Number::ChannelFail => {
                let _ = transport.fail();
                Ok(0)
            }
            _ => Err(CallError::NoSuchCall),
        }
    }
}

fn range_of(channel: u16) -> MemoryRange {
    let address = u64::from(device_of(channel).0.0) * RAM.1 as u64;
    MemoryRange { guest: RAM.0, address, bytes: RAM.1 as u64 }
}

impl Host for Fake {
    fn calls(&self, calls: &mut [Call]) {
        for call in calls {
            call.answer = self.perform(call);
        }
    }

    fn interrupt(&self, channel: u16) {
        let mut inner = self.inner();
        let Some(device) = inner.devices.get_mut(&channel) else { return };
        device.interrupts += 1;
        if let Some(transport) = &device.channel {
            let _ = transport.interrupt(Interrupt::Used);
        }
    }

    fn events(&self) -> &[AtomicU64; PAGE_WORDS] {
        &self.events
    }

    fn events_address(&self) -> u64 {
        0
    }

    fn interrupt_fd(&self) -> BorrowedFd<'_> {
        self.pin.fd()
    }

    fn take_interrupt(&self) -> io::Result<()> {
        self.pin.drain();
        self.pin.take();
        Ok(())
    }

    fn cost_of_sleep(&self) -> Duration {
        Duration::from_micros(50)
    }

    fn map(&self, ranges: &[MemoryRange]) -> io::Result<Memory> {
        let piece = |range: &MemoryRange| {
            let mapping = Mapping::new(&self.memory, range.address, range.bytes as usize)?;
            Ok(Piece { guest: range.guest, mapping, offset: 0, bytes: range.bytes as usize })
        };
        Memory::new(ranges.iter().map(piece).collect::<io::Result<_>>()?).map_err(io::Error::other)
    }
}

/// A guest that drives one device.
pub struct Guest {
    fake: Arc<Fake>,
    channel: u16,
    /// The device's registers.
    pub transport: Arc<Channel>,
    /// Its memory.
    pub memory: Arc<Memory>,
}

impl Guest {
    fn write(&self, offset: u64, value: u32) {
        let effect = self.transport.write(offset, 4, value.into(), &View(&self.memory));
        let tell = |queue| self.fake.deliver(Source::Channel { channel: self.channel, queue });
        match effect {
            // The event says all that the bits said.
            Effect::Notify { .. } => {
                let told = self.transport.take_notifications();
                (0..64).filter(|queue| told >> queue & 1 != 0).for_each(tell);
            }
            Effect::Changed(_) => tell(CHANGES),
            Effect::Nothing | Effect::Interrupt | Effect::Released => {}
        }
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.transport.read(register::STATUS, 4) as u32
    }

    /// Notifies a queue.
    pub fn notify(&self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }

    /// Resets the device, and waits until that is done.
    pub fn reset(&self) {
        self.write(register::STATUS, 0);
        for _ in 0..10_000 {
            if !self.transport.is_waiting() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody acknowledges the reset");
    }

    /// Initialises the device with all its features but `without`, and these queues.
    pub fn init(&self, without: u64, queues: &[QueueState]) {
        self.reset();
        self.write(register::STATUS, 1);
        self.write(register::STATUS, 3);
        for half in 0..2_u32 {
            self.write(register::DEVICE_FEATURES_SEL, half);
            let offered = self.transport.read(register::DEVICE_FEATURES, 4) as u32;
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, offered & !((without >> (32 * half)) as u32));
        }
        self.write(register::STATUS, 11);
        assert_eq!(self.status(), 11);
        for (index, queue) in (0..).zip(queues) {
            self.write(register::QUEUE_SEL, index);
            self.write(register::QUEUE_NUM, queue.size.into());
            for (low, address) in [
                (register::QUEUE_DESC_LOW, queue.descriptors),
                (register::QUEUE_DRIVER_LOW, queue.driver),
                (register::QUEUE_DEVICE_LOW, queue.device),
            ] {
                self.write(low, address as u32);
                self.write(low + 4, (address >> 32) as u32);
            }
            self.write(register::QUEUE_READY, 1);
        }
        self.write(register::STATUS, 15);
    }
}
