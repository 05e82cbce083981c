//! What domains ask for by hypercalls: each call has been decoded, and its caller's privileges looked at.

use alloc::vec::Vec;

use caisson_abi::io::{ChannelDescription, ChannelRecord, MemoryRange, channel_of, reason};
use caisson_abi::{Buffer, CallError, CallResult, ChannelCall, Operation};
use caisson_hwvirt::Backend;
use caisson_stage2::Format;
use caisson_types::GuestMemory;
use caisson_virtio::{Channel, Interrupt};
use zerocopy::{FromZeros, IntoBytes};

use super::Io;
use crate::guests::Live;
use crate::scheduler::System;

/// Bytes that are copied at a time.
const CHUNK: usize = 256;

/// A call, and who makes it.
struct Caller<'a, B: Backend, F: Format> {
    io: &'a Io<B, F>,
    system: &'a System<B, F>,
    live: &'a Live<B, F>,
}

impl<B: Backend, F: Format> Io<B, F> {
    /// Does what the domain `live` asks for, on one of its vCPUs.
    pub(crate) fn call(&self, system: &System<B, F>, live: &Live<B, F>, operation: Operation) -> CallResult {
        let id = live.domain.id;
        match operation {
            Operation::Version => Ok(caisson_abi::VERSION),
            Operation::Event(call) => self.event_call(system, id, call),
            Operation::Connect { page, vector } => self.connect(system, id, page, vector),
            Operation::Channel(call) => Caller { io: self, system, live }.channel(call),
            Operation::Control(call) => system.control(live, call),
        }
    }
}

impl<B: Backend, F: Format> Caller<'_, B, F> {
    fn channel(&self, call: ChannelCall) -> CallResult {
        match call {
            ChannelCall::List { into } => self.list(into),
            ChannelCall::Parameters { channel, into } => self.parameters(channel, into),
            ChannelCall::Describe { channel, from } => self.describe(channel, from),
            ChannelCall::Attach { channel } => self.io.attach(self.system, self.live, channel),
            ChannelCall::Detach { channel } => self.io.detach(self.system, self.live.domain.id, channel),
            ChannelCall::Memory { channel, into } => self.memory(channel, into),
            ChannelCall::State { channel, into } => self.state(channel, into),
            ChannelCall::Acknowledge { channel, change } => self.acknowledge(channel, change),
            ChannelCall::Interrupt { channel, reasons } => self.interrupt(channel, reasons),
            ChannelCall::Config { channel, offset, into } => self.config(channel, offset, into),
            ChannelCall::SetConfig { channel, offset, from } => self.set_config(channel, offset, from),
            ChannelCall::Fail { channel } => self.with(channel, |guest, slot, channel| {
                self.io.settle(self.system, guest, slot, channel.fail());
                Ok(0)
            }),
        }
    }

    /// Does something to a device that the caller is attached to.
    fn with(
        &self,
        channel: u16,
        what: impl FnOnce(&alloc::sync::Arc<Live<B, F>>, usize, &Channel) -> CallResult,
    ) -> CallResult {
        let (live, slot) = self.io.attached(self.system, self.live.domain.id, channel)?;
        let channel = live.domain.served_channel(slot).ok_or(CallError::Refused)?;
        what(&live, slot, channel)
    }

    /// Writes as much of `bytes` as there is room for.
    fn write(&self, into: Buffer, bytes: &[u8]) -> Result<(), CallError> {
        let room = bytes.len().min(into.bytes as usize);
        let bytes = bytes.get(..room).unwrap_or_default();
        self.live.domain.memory.write(into.at, bytes).map_err(|_| CallError::Fault)
    }

    fn list(&self, into: Buffer) -> CallResult {
        let mut count = 0;
        for entry in self.system.domains.iter() {
            let guest = entry.io.guest.lock();
            let devices = guest.served.devices().iter().zip(&guest.parameters);
            let records: Vec<ChannelRecord> = devices
                .filter(|(device, _)| device.backend == self.live.domain.id)
                .map(|(device, parameters)| {
                    let mut record = ChannelRecord {
                        channel: channel_of(entry.id, device.slot).unwrap_or(u16::MAX),
                        domain: entry.id.0,
                        kind: device.kind,
                        life: guest.served.life(),
                        state: guest.served.record_state(device),
                        parameters: parameters.len() as u32,
                        ..ChannelRecord::default()
                    };
                    record.name.iter_mut().zip(entry.name().bytes()).for_each(|(to, from)| *to = from);
                    record
                })
                .collect();
            drop(guest);
            for record in records {
                let at = count * size_of::<ChannelRecord>() as u64;
                if at + size_of::<ChannelRecord>() as u64 <= u64::from(into.bytes) {
                    let at = into.at.checked_add(at).ok_or(CallError::Fault)?;
                    self.live.domain.memory.write(at, record.as_bytes()).map_err(|_| CallError::Fault)?;
                }
                count += 1;
            }
        }
        Ok(count)
    }

    fn parameters(&self, channel: u16, into: Buffer) -> CallResult {
        let (entry, device) = self.io.find(self.system, self.live.domain.id, channel)?;
        let text = entry.io.guest.lock().parameters.get(device).cloned().unwrap_or_default();
        self.write(into, text.as_bytes())?;
        Ok(text.len() as u64)
    }

    fn describe(&self, channel: u16, from: Buffer) -> CallResult {
        let mut description = ChannelDescription::new_zeroed();
        self.live.domain.memory.read(from.at, description.as_mut_bytes()).map_err(|_| CallError::Fault)?;
        caisson_domain::description(&description).map_err(|_| CallError::Invalid)?;
        self.io.describe(self.system, self.live.domain.id, channel, description)
    }

    fn memory(&self, channel: u16, into: Buffer) -> CallResult {
        self.with(channel, |guest, _, _| {
            let granted = guest.domain.memory.granted();
            let ranges: Vec<MemoryRange> = granted
                .clone()
                .map(|extent| MemoryRange {
                    guest: extent.gpa.as_u64(),
                    address: extent.hpa.as_u64(),
                    bytes: extent.bytes,
                })
                .take(into.bytes as usize / size_of::<MemoryRange>())
                .collect();
            self.write(into, ranges.as_bytes())?;
            Ok(granted.count() as u64)
        })
    }

    fn state(&self, channel: u16, into: Buffer) -> CallResult {
        let (live, slot) = self.io.attached(self.system, self.live.domain.id, channel)?;
        if live.is_ending() {
            return Err(CallError::PeerClosed);
        }
        let channel = live.domain.served_channel(slot).ok_or(CallError::Refused)?;
        // Taken first: what is noted from here on is an event again.
        let pending = channel.take_notifications();
        let mut state = channel.snapshot();
        state.pending |= pending;
        let mut bytes = Vec::with_capacity(CHUNK);
        bytes.extend_from_slice(state.as_bytes());
        for queue in (0..).map_while(|index| channel.queue(index)) {
            bytes.extend_from_slice(queue.as_bytes());
        }
        self.write(into, &bytes)?;
        Ok(bytes.len() as u64)
    }

    fn acknowledge(&self, channel: u16, change: u32) -> CallResult {
        self.with(channel, |guest, slot, channel| {
            self.io.settle(self.system, guest, slot, channel.acknowledge(change));
            Ok(0)
        })
    }

    fn interrupt(&self, channel: u16, reasons: u8) -> CallResult {
        self.with(channel, |guest, slot, channel| {
            for (bit, why) in [(reason::USED, Interrupt::Used), (reason::CONFIG, Interrupt::Config)] {
                if u64::from(reasons) & bit != 0 {
                    self.io.settle(self.system, guest, slot, channel.interrupt(why));
                }
            }
            Ok(0)
        })
    }

    fn config(&self, channel: u16, offset: u16, into: Buffer) -> CallResult {
        self.with(channel, |_, _, channel| {
            let mut bytes = [0; CHUNK];
            let count = channel.config(offset.into(), &mut bytes);
            self.write(into, bytes.get(..count).unwrap_or_default())?;
            Ok(count as u64)
        })
    }

    fn set_config(&self, channel: u16, offset: u16, from: Buffer) -> CallResult {
        let mut bytes = [0; CHUNK];
        let bytes = bytes.get_mut(..from.bytes as usize).ok_or(CallError::Invalid)?;
        self.live.domain.memory.read(from.at, bytes).map_err(|_| CallError::Fault)?;
        self.with(channel, |guest, slot, channel| {
            let effect = channel.set_config(offset.into(), bytes).ok_or(CallError::Invalid)?;
            self.io.settle(self.system, guest, slot, effect);
            Ok(0)
        })
    }
}
