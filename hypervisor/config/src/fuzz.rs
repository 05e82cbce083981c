//! Entry points for fuzz targets: any bytes in, no panic out.

use alloc::string::ToString;
use alloc::vec::Vec;

use crate::blob::check::seal;
use crate::blob::{Blob, DeviceBackend};
use crate::error::Reason;
use crate::functions::{Functions, MAX_FUNCTIONS};
use crate::layout::{HEADER_SHA256, Header};
use crate::private::MIN_SHARED;
use crate::rules::{MAX_NAME, MachineLimits};

/// Parses `data` as a blob, as it is and with its header's checksum corrected, so that the checks behind it are
/// reached; walks through everything that a blob accepted by the parser offers.
pub fn drive(data: &[u8]) {
    walk(data);
    let mut sealed = data.to_vec();
    reseal(&mut sealed);
    walk(&sealed);
}

/// Parses `data` as a configuration text and builds it from files of few bytes.
pub fn drive_source(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let later = crate::source::parse_later(text, "fuzz.toml");
    if let Ok(config) = &later
        && let Ok(blob) = crate::build(config, |name| Ok(name.as_bytes().to_vec()))
    {
        walk(&blob);
        assert!(Blob::parse_unhashed(&blob).is_ok_and(|blob| blob.check_complete().is_err()));
    }
    match crate::source::parse_toml(text, "fuzz.toml") {
        Ok(config) => {
            // A pool or a domain that is not there may be the machine's.
            assert!(config.domains.iter().any(|domain| !domain.devices.is_empty()) || later.is_ok());
            if let Ok(blob) = crate::build(&config, |name| Ok(name.as_bytes().to_vec())) {
                walk(&blob);
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n'), "more than one line: {line}");
        }
    }
}

/// Makes the lengths and checksum in a blob's header fit its bytes, as far as there are enough of them.
pub fn reseal(bytes: &mut Vec<u8>) {
    use zerocopy::{FromBytes, IntoBytes};
    bytes.resize(bytes.len().next_multiple_of(crate::PAYLOAD_ALIGN as usize).max(4096), 0);
    let total_len = bytes.len() as u64;
    let Ok((header, _)) = Header::read_from_prefix(bytes) else { return };
    let meta_len = header.meta_len.get().clamp(1, total_len).next_multiple_of(crate::PAYLOAD_ALIGN);
    let header = Header {
        magic: crate::MAGIC,
        version: crate::VERSION.into(),
        total_len: total_len.into(),
        meta_len: meta_len.into(),
        ..header
    };
    bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    if let Some(sha256) = seal(&bytes[..meta_len as usize]) {
        bytes[HEADER_SHA256].copy_from_slice(&sha256);
    }
}

fn walk(bytes: &[u8]) {
    let parsed = Blob::parse(bytes);
    match Blob::parse_unhashed(bytes) {
        Ok(blob) => {
            (0..=blob.domains().len()).for_each(|index| walk_later(&blob, index));
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            assert!(
                parsed.is_err() || matches!(error.reason, Reason::TablesTooLong { .. }),
                "the same gate: {error}"
            );
        }
    }
    match parsed {
        Ok(blob) => {
            if let Err(error) = blob.check_complete() {
                assert!(!error.to_string().contains('\n'));
            }
            let shown = crate::show(&blob).to_string();
            assert!(shown.contains("domain[0]"));
            let limits = MachineLimits { memory: 1 << 30, max_vcpus: 1, address_bits: 40 };
            if let Err(error) = blob.check_machine(&limits) {
                assert!(!error.to_string().contains('\n'));
            }
            for cpus in [1, 4, 300] {
                let checked = blob.check_cpus(cpus);
                assert!(
                    checked.is_ok() == blob.place_reservations(cpus, |_, _, _| {}).is_ok()
                        || checked.is_err()
                );
                if let Err(error) = checked {
                    assert!(!error.to_string().contains('\n'));
                }
            }
            for domain in blob.domains() {
                assert!(!domain.kernel().data().is_empty());
                assert!(domain.private() == 0 || domain.private() + MIN_SHARED <= domain.memory());
                for device in domain.virtio_devices() {
                    match device.backend {
                        DeviceBackend::Domain(index) => assert!(blob.domain(index).is_some()),
                        DeviceBackend::Named(_) => assert!(blob.check_complete().is_err()),
                    }
                    assert!(device.parameters.lines().all(|line| line.contains('=')));
                }
                if let Functions::Named(list) = domain.functions() {
                    assert!(list.iter().is_sorted_by(|a, b| a < b) && list.iter().count() <= MAX_FUNCTIONS);
                }
                assert!(domain.modules().all(|module| !module.payload().data().is_empty()));
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// Reads what a domain that is made at run time is made of.
fn walk_later(blob: &Blob<'_>, index: usize) {
    let Some(domain) = blob.domain(index) else {
        assert!(blob.check_later(index).is_err());
        return;
    };
    assert_eq!(blob.check_later(index).is_err(), domain.owns_devices());
    assert!(!domain.kernel().data().is_empty() && blob.pools().nth(domain.pool()).is_some());
    domain.virtio_devices().for_each(|device| assert!(blob.backend_name(device.backend).len() <= MAX_NAME));
}
