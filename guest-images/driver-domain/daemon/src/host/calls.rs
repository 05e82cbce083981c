//! Caisson's calls with names and types. `docs/abi.md` says what each does.

use std::fmt;
use std::sync::Arc;

use caisson_abi::io::{ChannelDescription, ChannelRecord, DeviceState, MAX_QUEUES, MemoryRange, QueueState};
use caisson_abi::{CallError, Number};
use zerocopy::{FromBytes, IntoBytes};

use super::{Call, Host, MAX_DATA};

/// A call that Caisson has refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Which.
    pub call: Number,
    /// Why.
    pub error: CallError,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call.name(), self.error)
    }
}

impl std::error::Error for Refusal {}

/// Makes calls.
#[derive(Clone)]
pub struct Caisson {
    host: Arc<dyn Host>,
}

/// The transport of a device and its queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The transport.
    pub device: DeviceState,
    /// As many as it has.
    pub queues: Vec<QueueState>,
}

/// Where calls that take a channel and then an address have that address.
const SECOND: usize = 1;

impl Caisson {
    /// Calls by `host`.
    #[must_use]
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host }
    }

    /// What they are made by.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// A call: its answer, and what it has written.
    ///
    /// # Errors
    /// The call's.
    pub fn call(&self, call: Call) -> Result<(u64, Vec<u8>), Refusal> {
        let mut calls = [call];
        self.host.calls(&mut calls);
        let [call] = calls;
        let Call { number, answer, data, .. } = call;
        answer.map(|answer| (answer, data)).map_err(|error| Refusal { call: number, error })
    }

    fn plain(&self, number: Number, arguments: &[u64]) -> Result<u64, Refusal> {
        self.call(Call::new(number, arguments)).map(|(answer, _)| answer)
    }

    /// A call of a channel that writes up to `bytes` bytes, and answers how many there are of what `unit` bytes each have.
    fn read(&self, number: Number, channel: u16, bytes: usize) -> Result<(u64, Vec<u8>), Refusal> {
        let call = Call::new(number, &[channel.into(), 0, bytes as u64]);
        self.call(call.with_data(SECOND, vec![0; bytes]))
    }

    // ---- events

    /// Takes the shared page into use; all ports that there were are closed.
    ///
    /// # Errors
    /// The call's.
    pub fn connect(&self) -> Result<(), Refusal> {
        self.plain(Number::EventConnect, &[self.host.events_address(), 0]).map(drop)
    }

    /// A port for changes of the list.
    ///
    /// # Errors
    /// The call's.
    pub fn bind_backend(&self) -> Result<u16, Refusal> {
        self.plain(Number::EventBindBackend, &[]).map(|port| port as u16)
    }

    /// A port for each of `queues` of a channel.
    ///
    /// # Errors
    /// The first call's that failed; the ports that there were until then are closed.
    pub fn bind_channel(&self, channel: u16, queues: &[u16]) -> Result<Vec<u16>, Refusal> {
        let mut ports = Vec::with_capacity(queues.len());
        for part in queues.chunks(caisson_abi::BATCH_MAX) {
            let bind = |&queue: &u16| Call::new(Number::EventBindChannel, &[channel.into(), queue.into()]);
            let mut calls: Vec<_> = part.iter().map(bind).collect();
            self.host.calls(&mut calls);
            ports.extend(calls.iter().map(|call| call.answer));
        }
        if let Some(error) = ports.iter().find_map(|port| port.err()) {
            let there: Vec<_> = ports.iter().flatten().map(|&port| port as u16).collect();
            self.close(&there);
            return Err(Refusal { call: Number::EventBindChannel, error });
        }
        Ok(ports.into_iter().flatten().map(|port| port as u16).collect())
    }

    /// Gives ports back.
    pub fn close(&self, ports: &[u16]) {
        for part in ports.chunks(caisson_abi::BATCH_MAX) {
            let mut calls: Vec<_> =
                part.iter().map(|&port| Call::new(Number::EventClose, &[port.into()])).collect();
            self.host.calls(&mut calls);
        }
    }

    // ---- channels

    /// The devices that this domain serves, as many as a call can tell of, and how many more there are.
    ///
    /// # Errors
    /// The call's.
    pub fn list(&self) -> Result<(Vec<ChannelRecord>, u64), Refusal> {
        let call = Call::new(Number::ChannelList, &[0, MAX_DATA as u64]);
        let (count, data) = self.call(call.with_data(0, vec![0; MAX_DATA]))?;
        let records = records::<ChannelRecord>(&data, count);
        let more = count.saturating_sub(records.len() as u64);
        Ok((records, more))
    }

    /// What the configuration says of a device, in `bytes` bytes.
    ///
    /// # Errors
    /// The call's.
    pub fn parameters(&self, channel: u16, bytes: u32) -> Result<String, Refusal> {
        let room = (bytes as usize).next_multiple_of(8).clamp(8, MAX_DATA);
        let (count, mut data) = self.read(Number::ChannelParameters, channel, room)?;
        data.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(String::from_utf8_lossy(&data).into_owned())
    }

    /// Says what a device is.
    ///
    /// # Errors
    /// The call's: `Busy` where its guest lives with another description.
    pub fn describe(&self, channel: u16, description: &ChannelDescription) -> Result<(), Refusal> {
        let call = Call::new(Number::ChannelDescribe, &[channel.into()]);
        self.call(call.with_data(SECOND, description.as_bytes().to_vec())).map(drop)
    }

    /// Takes a device on: the number of its guest's life.
    ///
    /// # Errors
    /// The call's.
    pub fn attach(&self, channel: u16) -> Result<u64, Refusal> {
        self.plain(Number::ChannelAttach, &[channel.into()])
    }

    /// Lets go of a device.
    ///
    /// # Errors
    /// The call's.
    pub fn detach(&self, channel: u16) -> Result<(), Refusal> {
        self.plain(Number::ChannelDetach, &[channel.into()]).map(drop)
    }

    /// Where its guest's memory is.
    ///
    /// # Errors
    /// The call's; `TooBig` where there are more ranges than the area has room for.
    pub fn memory(&self, channel: u16) -> Result<Vec<MemoryRange>, Refusal> {
        let room = MAX_DATA / size_of::<MemoryRange>() * size_of::<MemoryRange>();
        let (count, data) = self.read(Number::ChannelMemory, channel, room)?;
        let ranges: Vec<MemoryRange> = records(&data, count);
        if ranges.len() as u64 == count {
            Ok(ranges)
        } else {
            Err(Refusal { call: Number::ChannelMemory, error: CallError::TooBig })
        }
    }

    /// Its transport's state. The notifications in it have been taken.
    ///
    /// # Errors
    /// The call's: `PeerClosed` when its guest has ended.
    pub fn state(&self, channel: u16, queues: usize) -> Result<State, Refusal> {
        let room = size_of::<DeviceState>() + queues.min(MAX_QUEUES) * size_of::<QueueState>();
        let (_, data) = self.read(Number::ChannelState, channel, room)?;
        let (device, rest) = DeviceState::read_from_prefix(&data)
            .map_err(|_| Refusal { call: Number::ChannelState, error: CallError::Fault })?;
        let count = (device.queues as usize).min(queues);
        Ok(State { device, queues: records(rest, count as u64) })
    }

    /// Nothing is touched any more that changes up to `change` have ended.
    ///
    /// # Errors
    /// The call's.
    pub fn acknowledge(&self, channel: u16, change: u32) -> Result<(), Refusal> {
        self.plain(Number::ChannelAcknowledge, &[channel.into(), change.into()]).map(drop)
    }

    /// A device cannot go on before its guest resets it.
    ///
    /// # Errors
    /// The call's.
    pub fn fail(&self, channel: u16) -> Result<(), Refusal> {
        self.plain(Number::ChannelFail, &[channel.into()]).map(drop)
    }

    /// Changes the configuration from `offset` on and tells the guest.
    ///
    /// # Errors
    /// The call's.
    pub fn set_config(&self, channel: u16, offset: usize, bytes: &[u8]) -> Result<(), Refusal> {
        let arguments = [channel.into(), offset as u64, 0, bytes.len() as u64];
        self.call(Call::new(Number::ChannelSetConfig, &arguments).with_data(2, bytes.to_vec())).map(drop)
    }
}

/// The first `count` records of `data`, as many as are there.
pub(crate) fn records<T: FromBytes>(data: &[u8], count: u64) -> Vec<T> {
    let whole = data.chunks_exact(size_of::<T>());
    whole.take(usize::try_from(count).unwrap_or(usize::MAX)).flat_map(T::read_from_bytes).collect()
}
