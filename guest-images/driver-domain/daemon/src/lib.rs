//! Caisson's backend daemon: an ordinary Linux program in the driver domain that serves other guests' virtio devices.
//!
//! ```text
//!  guest: stock virtio driver ── its rings and buffers, in its memory ◄──────────────┐ mapped by /dev/daxX.Y
//!       │ registers: exits                                                            │
//!       ▼                        list, describe, attach, state, acknowledge           │
//!  Caisson: transport  ◄──────── door: ca15:0001 by UIO, batches of calls ──────── this daemon ──► file, disk, TAP, socket
//!       │                                                                             ▲
//!       └── events: a shared page, one interrupt for many ────────────────────────────┘
//! ```
//!
//! Caisson owns each device's transport: features, status, where the queues are. The daemon has the rest, and may die at any
//! moment: the next one attaches, finds in the rings what is done and what is not, and goes on; the guest waits meanwhile.
//!
//! | module | what |
//! |---|---|
//! | [`host`] | what Caisson is to the daemon: the door, its calls; a fake one for tests |
//! | [`daemon`] | which devices there are; who hears of which event |
//! | [`service`] | the thread of a device: follows the transport, works, sleeps |
//! | [`pace`] | how long it looks before it sleeps |
//! | [`device`] | what a kind of device has to be able to do |
//! | [`ring`] | virtqueues of guests that may do anything, given back in order |
//! | [`block`] | disks |
//! | [`net`] | network cards |
//! | [`port`] | consoles at a socket |
//! | [`entropy`] | random numbers, so many per second |
//! | [`share`] | directories, by vhost-user backends |
//! | [`sys`] | mappings, transfers, asynchronous work: all `unsafe` code |
//! | [`control`] | the socket at which the daemon answers questions |
//! | [`domains`] | questions about domains, and what is to be done to them |
//! | [`uploads`] | blobs of new domains, on their way to Caisson |
//! | [`guests`] | files that say which devices have a guest |
//! | [`claims`] | files that are locked while anything of a device is under way |
//! | [`parameters`], [`kinds`] | what the configuration says of a device, and what comes of it |
//! | [`bell`], [`statistics`], [`log`] | threads that tell each other to look; counters; lines on the console |
//!
//! # What has to hold
//!
//! - Guests are hostile. What one writes to its rings and buffers, and when, ends at most its own device, with one line in the log
//!   (limited). Chains are taken whole and checked whole, then served; nothing is read twice.
//! - What a guest can make the daemon allocate has a bound: a queue's entries times a chain's descriptors, a few pages for
//!   transfers that are not aligned.
//! - A guest reaches its own disks' extents, its own network's frames, and nothing else.
//! - Memory of a guest is touched only while a device of it is attached, and unmapped when all use has ended.

pub mod bell;
pub mod block;
pub mod claims;
pub mod control;
pub mod daemon;
pub mod device;
pub mod domains;
pub mod entropy;
pub mod guests;
pub mod host;
pub mod kinds;
pub mod log;
pub mod net;
pub mod pace;
pub mod parameters;
pub mod port;
pub mod ring;
pub mod service;
pub mod share;
pub mod statistics;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod uploads;
