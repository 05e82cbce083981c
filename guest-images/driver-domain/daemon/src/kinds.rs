//! The kinds of devices that there are.

use caisson_abi::io::ChannelRecord;
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_RNG,
};

use crate::block::Block;
use crate::device::Device;
use crate::entropy::Entropy;
use crate::net::Net;
use crate::parameters::Parameters;
use crate::port::Port;
use crate::share::Share;

/// Why a device cannot be had.
pub type OpenError = Box<dyn std::error::Error>;

/// What a kind is called.
#[must_use]
pub const fn word(kind: u32) -> &'static str {
    match kind {
        VIRTIO_ID_NET => "network",
        VIRTIO_ID_BLOCK => "disk",
        VIRTIO_ID_CONSOLE => "port",
        VIRTIO_ID_FS => "share",
        VIRTIO_ID_RNG => "entropy",
        _ => "device",
    }
}

/// Makes the device of a record, with these parameters.
///
/// # Errors
/// What is wrong with them, or with what they name.
pub fn open(record: &ChannelRecord, parameters: &str) -> Result<Box<dyn Device>, OpenError> {
    let parameters = Parameters::parse(parameters)?;
    Ok(match record.kind {
        VIRTIO_ID_BLOCK => Box::new(Block::open(record.channel, &parameters)?),
        VIRTIO_ID_NET => Box::new(Net::open(record.channel, &parameters)?),
        VIRTIO_ID_CONSOLE => Box::new(Port::open(&guest_of(record), &parameters)?),
        VIRTIO_ID_RNG => Box::new(Entropy::open(&parameters)?),
        VIRTIO_ID_FS => Box::new(Share::open(record.channel, &parameters)?),
        kind => return Err(format!("virtio devices of type {kind} are not served here: leave it out").into()),
    })
}

/// The name of a record's guest.
#[must_use]
pub fn guest_of(record: &ChannelRecord) -> String {
    let name = record.name.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}
