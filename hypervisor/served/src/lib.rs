//! Who serves a guest's devices, and what of the guest's memory is granted for that.
//!
//! A guest's device is served by a *backend*, another domain that its configuration names. The backend *describes* the device
//! and, while the guest lives, *attaches* to it. With the first device of a guest that a backend attaches to, the guest's memory is
//! *granted* to that backend's domain: mapped there. It stays so until it is *revoked*, which happens when no device of the guest
//! is attached there any more.
//!
//! ```text
//!               described                  started                    ended              let go
//!   the guest:  ────────► all described ──────────► living ───────────────► ending ──────────────► absent
//!                                                    │                        │
//!   a grant:            attach: granted ◄────────────┘   last detach, or      │ may be let go when nothing is
//!                             │     │                    the backend's end    │ attached and nothing granted
//!                             ▼     └─► broken ─┐                             │
//!                          leaving ──► revoking ◄┘ ──► none ──────────────────┘
//!                                         │
//!   the backend's devices cannot be kept  └─► lost: a guest that is let go then has lost its memory
//!   out of it, at its end or before:  ──────►
//! ```
//!
//! Invariants, of which the tests have a model:
//! - Memory of a guest that is let go is granted to nobody; or it is told that it is lost ([`LetGo::Lost`]).
//! - A device is attached only while memory is granted to its backend, and while its guest has not been let go.
//! - Only the backend that the configuration names describes, attaches to or detaches from a device.
//! - A guest is started when all its devices are described, and not before.
//!
//! Nothing here maps or unmaps: the caller does, as it is told, under the lock that it keeps this state in; but a revocation, which
//! takes other CPUs' time, without it ([`Served::begin_revocation`]).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_abi::CallError;
use caisson_abi::io::{ChannelDescription, record};
use caisson_types::DomainId;

/// A device that another domain serves.
#[derive(Debug)]
pub struct Device {
    /// Its number among the guest's devices.
    pub slot: u16,
    /// The virtio device type.
    pub kind: u32,
    /// Who serves it.
    pub backend: DomainId,
    description: Option<Box<ChannelDescription>>,
    attached: bool,
}

impl Device {
    /// A device of the configuration's.
    #[must_use]
    pub const fn new(slot: u16, kind: u32, backend: DomainId) -> Self {
        Self { slot, kind, backend, description: None, attached: false }
    }

    /// What its backend says that it is.
    #[must_use]
    pub fn description(&self) -> Option<&ChannelDescription> {
        self.description.as_deref()
    }
}

/// Where the guest is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Absent,
    /// It is being made, with the devices as they were described before.
    Making,
    Living,
    Ending,
}

/// What a grant is about to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GrantState {
    /// The memory is mapped, and used.
    Granted,
    /// It is mapped, and not used any more.
    Leaving,
    /// It could not be mapped whole; a part may be. It is used by nobody.
    Broken,
    /// It is being unmapped.
    Revoking,
    /// It is used by nobody, and the backend's devices may reach it for ever.
    Lost,
}

/// Whether a guest that has ended can be taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum LetGo {
    /// Somebody uses something of it.
    Used,
    /// It can, and nobody reaches its memory.
    Free,
    /// It can, but devices of that backend may reach its memory for ever.
    Lost(DomainId),
}

/// What became of a description.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Described {
    /// The guest waits for more, or for somebody to start it.
    Waiting,
    /// It was the last one: the guest can be started.
    Complete,
    /// The guest lives, or is being made: its configuration is the one that was described now, which may be new.
    Living,
}

/// What an attachment needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Attached {
    /// The memory is granted already.
    Granted,
    /// It is to be mapped; if that fails, [`Served::cannot_grant`], since a part may be.
    Grant,
}

/// The devices of a guest that other domains serve.
#[derive(Debug)]
pub struct Served {
    devices: Vec<Device>,
    phase: Phase,
    /// The number of this life, or the last one.
    life: u32,
    /// It does not come again.
    gone: bool,
    grants: Vec<(DomainId, GrantState)>,
}

impl Served {
    /// Those of a guest that does not live yet.
    #[must_use]
    pub const fn new(devices: Vec<Device>) -> Self {
        Self { devices, phase: Phase::Absent, life: 0, gone: false, grants: Vec::new() }
    }

    /// The devices, in the order of their slots.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Whether the guest can be started.
    #[must_use]
    pub fn is_described(&self) -> bool {
        self.devices.iter().all(|device| device.description.is_some())
    }

    /// A device that `backend` serves.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it does not.
    pub fn device(&self, slot: u16, backend: DomainId) -> Result<&Device, CallError> {
        let found = self.devices.iter().find(|device| device.slot == slot && device.backend == backend);
        found.ok_or(CallError::Refused)
    }

    fn device_mut(&mut self, slot: u16, backend: DomainId) -> Result<&mut Device, CallError> {
        let found = self.devices.iter_mut().find(|device| device.slot == slot && device.backend == backend);
        found.ok_or(CallError::Refused)
    }

    /// That a backend is attached to a device.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it does not serve it, [`CallError::NotConnected`] where it is not attached.
    pub fn attached(&self, slot: u16, backend: DomainId) -> Result<&Device, CallError> {
        Some(self.device(slot, backend)?).filter(|device| device.attached).ok_or(CallError::NotConnected)
    }

    /// The bits of a record ([`record`]).
    #[must_use]
    pub fn record_state(&self, device: &Device) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(device.description.is_some(), record::DESCRIBED)
            | bit(device.attached, record::ATTACHED)
            | bit(self.phase == Phase::Ending, record::ENDED)
            | bit(self.gone, record::GONE)
    }

    /// The number of the guest's life; 0 while it does not live.
    #[must_use]
    pub fn life(&self) -> u32 {
        if matches!(self.phase, Phase::Living | Phase::Ending) { self.life } else { 0 }
    }

    // ---- The backend's side.

    /// The backend says what a device is. The caller has made sure that it is a device's description.
    ///
    /// # Errors
    /// [`CallError::Refused`]; [`CallError::Invalid`] for another type than the configuration's; [`CallError::Busy`] for another
    /// device than the guest knows which lives, or is being made.
    pub fn describe(
        &mut self,
        slot: u16,
        backend: DomainId,
        description: ChannelDescription,
    ) -> Result<Described, CallError> {
        let living = self.phase != Phase::Absent;
        let device = self.device_mut(slot, backend)?;
        if description.device != device.kind {
            return Err(CallError::Invalid);
        }
        match &mut device.description {
            Some(before) if living => {
                let config = description.config;
                if *before.as_ref() != (ChannelDescription { config: before.config, ..description }) {
                    return Err(CallError::Busy);
                }
                before.config = config;
                Ok(Described::Living)
            }
            Some(before) => {
                **before = description;
                Ok(Described::Waiting)
            }
            None => {
                device.description = Some(Box::new(description));
                Ok(if self.is_described() { Described::Complete } else { Described::Waiting })
            }
        }
    }

    /// The backend takes a device on, or once more where it has already.
    ///
    /// # Errors
    /// [`CallError::Refused`]; [`CallError::NoSuchDomain`] while the guest does not live; [`CallError::Busy`] while an earlier
    /// grant is being revoked, is to be because it could not be mapped whole, or cannot be.
    pub fn attach(&mut self, slot: u16, backend: DomainId) -> Result<Attached, CallError> {
        self.device(slot, backend)?;
        if self.phase != Phase::Living {
            return Err(CallError::NoSuchDomain);
        }
        let attached = match self.grants.iter_mut().find(|(to, _)| *to == backend) {
            Some((_, GrantState::Broken | GrantState::Revoking | GrantState::Lost)) => {
                return Err(CallError::Busy);
            }
            Some((_, state)) => {
                *state = GrantState::Granted;
                Attached::Granted
            }
            None => {
                self.grants.push((backend, GrantState::Granted));
                Attached::Grant
            }
        };
        self.device_mut(slot, backend)?.attached = true;
        Ok(attached)
    }

    /// What an attachment needed could not be mapped whole: nothing of the guest is attached to `backend`, which gets nothing before
    /// the part that may be mapped has been revoked.
    pub fn cannot_grant(&mut self, backend: DomainId) {
        let _ = self.let_go_of_all(backend);
        for (_, state) in self.grants.iter_mut().filter(|(to, _)| *to == backend) {
            *state = GrantState::Broken;
        }
    }

    /// The backend lets go of a device. Whether a grant is to be revoked now.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::NotConnected`].
    pub fn detach(&mut self, slot: u16, backend: DomainId) -> Result<bool, CallError> {
        self.attached(slot, backend)?;
        self.device_mut(slot, backend)?.attached = false;
        let used = self.devices.iter().any(|device| device.attached && device.backend == backend);
        if used {
            return Ok(false);
        }
        for (to, state) in &mut self.grants {
            if *to == backend && *state == GrantState::Granted {
                *state = GrantState::Leaving;
            }
        }
        Ok(true)
    }

    /// The backend's domain has ended, with its tables, and its devices do nothing any more: it is attached to nothing, and nothing
    /// is granted to it. The slots that it was attached to.
    pub fn backend_ended(&mut self, backend: DomainId) -> Vec<u16> {
        self.grants.retain(|(to, _)| *to != backend);
        self.let_go_of_all(backend)
    }

    /// The backend's domain has ended, with its tables, and does not come again; but its devices may do for ever what they could. It is
    /// attached to nothing, and what is granted to it is lost. The slots that it was attached to.
    pub fn backend_lost(&mut self, backend: DomainId) -> Vec<u16> {
        self.lose(backend);
        self.let_go_of_all(backend)
    }

    fn lose(&mut self, backend: DomainId) {
        let grants = self.grants.iter_mut().filter(|(to, _)| *to == backend);
        grants.for_each(|(_, state)| *state = GrantState::Lost);
    }

    /// Detaches the backend from everything. The slots that it was attached to.
    fn let_go_of_all(&mut self, backend: DomainId) -> Vec<u16> {
        let of = |device: &&mut Device| device.attached && device.backend == backend;
        let devices = self.devices.iter_mut().filter(of);
        let mut detach = |device: &mut Device| {
            device.attached = false;
            device.slot
        };
        devices.map(&mut detach).collect()
    }

    // ---- The guest's side.

    /// The guest is being made from now on, with the devices as they are described.
    pub fn making(&mut self) {
        if self.phase == Phase::Absent {
            self.phase = Phase::Making;
        }
    }

    /// It could not be made.
    pub fn unmade(&mut self) {
        if self.phase == Phase::Making {
            self.phase = Phase::Absent;
        }
    }

    /// The guest lives from now on, all its devices being described. What has been described anew while it was being made differs
    /// in the configuration alone.
    pub fn started(&mut self) {
        self.phase = Phase::Living;
        // 0 is no life.
        self.life = self.life.checked_add(1).unwrap_or(1);
    }

    /// The guest has ended.
    pub fn ended(&mut self) {
        if self.phase == Phase::Living {
            self.phase = Phase::Ending;
        }
    }

    /// It does not come again.
    pub fn gone(&mut self) {
        self.gone = true;
    }

    /// It comes again after all: as its backends have described its devices, or once they have.
    pub fn returns(&mut self) {
        self.gone = false;
    }

    /// Whether memory is granted to `backend` that none of its devices uses; then its revocation begins: the caller unmaps it, and has
    /// all CPUs forget it, and then calls [`Served::revoked`] or [`Served::cannot_revoke`].
    pub fn begin_revocation(&mut self, backend: DomainId) -> bool {
        let unused = |state: &GrantState| matches!(state, GrantState::Leaving | GrantState::Broken);
        let unused = self.grants.iter_mut().find(|(to, state)| *to == backend && unused(state));
        unused.map(|(_, state)| *state = GrantState::Revoking).is_some()
    }

    /// What was granted to `backend` is mapped there no longer.
    pub fn revoked(&mut self, backend: DomainId) {
        self.grants.retain(|grant| *grant != (backend, GrantState::Revoking));
    }

    /// What was granted to `backend`, and is being unmapped, cannot be taken from its devices or its CPUs: it is lost until the backend's
    /// end, if they are kept out of it then.
    pub fn cannot_revoke(&mut self, backend: DomainId) {
        if self.grants.contains(&(backend, GrantState::Revoking)) {
            self.lose(backend);
        }
    }

    /// Lets the guest go, if it has ended and nobody uses anything of it any more. What came of it; the same again of one that has
    /// been let go.
    pub fn let_go(&mut self) -> LetGo {
        let is_lost = |(_, state): &(DomainId, GrantState)| *state == GrantState::Lost;
        let used = self.devices.iter().any(|device| device.attached) || !self.grants.iter().all(is_lost);
        if !used && self.phase == Phase::Ending {
            self.phase = Phase::Absent;
        }
        match self.grants.first() {
            _ if self.phase != Phase::Absent => LetGo::Used,
            Some((backend, _)) => LetGo::Lost(*backend),
            None => LetGo::Free,
        }
    }
}
