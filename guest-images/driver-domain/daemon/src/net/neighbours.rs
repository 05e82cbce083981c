//! What a guest tells its neighbours by IPv6: neighbour discovery (RFC 4861) carries Ethernet addresses in its options, and those
//! that a guest sends have to be its own.
//!
//! A message may have extension headers before it (RFC 8200); the chain of them has to be there to be judged, as every node's first
//! fragment has it (RFC 7112). Neighbour discovery in fragments is nobody's (RFC 6980).
//!
//! A router that redirects a neighbour may name the Ethernet address of who is better, which is not its own: such redirects are
//! refused as well. They are an offer to find a shorter way, and the longer one works.

use super::Mac;

/// The header, and where in it the payload's length and the next header are.
const HEADER: usize = 40;
const PAYLOAD_BYTES: usize = 4;
const NEXT: usize = 6;

/// Next headers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMP: u8 = 58;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM: u8 = 140;

/// Options with an Ethernet address: the source's, and the target's.
const ADDRESSES: [u8; 2] = [1, 2];

/// Where the options begin in an ICMP message of this type, if it belongs to neighbour discovery.
const fn options(kind: u8) -> Option<usize> {
    match kind {
        133 => Some(8),        // router solicitation
        134 => Some(16),       // router advertisement
        135 | 136 => Some(24), // neighbour solicitation, advertisement
        137 => Some(40),       // redirect
        _ => None,
    }
}

/// Whether more than the first bytes of a packet have to be seen. One that is cut before that can be told is judged as it is.
pub(super) fn reads_on(packet: &[u8]) -> bool {
    let walked =
        [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, ICMP, DESTINATION, MOBILITY, HOST_IDENTITY, SHIM];
    packet.get(NEXT).is_some_and(|next| walked.contains(next))
}

/// How many of a packet's bytes matter, if the guest with this address may send it.
pub(super) fn judge(mac: Mac, packet: &[u8]) -> Option<usize> {
    if !reads_on(packet) {
        packet.get(NEXT)?;
        return Some(HEADER);
    }
    let bytes = HEADER + usize::from(u16::from_be_bytes(pair(packet, PAYLOAD_BYTES)?));
    // What follows the payload is padding.
    let seen = packet.get(..bytes.min(packet.len()))?;
    let (mut next, mut at, mut fragment) = (*packet.get(NEXT)?, HEADER, false);
    loop {
        let header = seen.get(at..)?;
        // In units of 8 bytes, or of 4, each counted in its own way.
        let length = usize::from(*header.get(1)?);
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HOST_IDENTITY | SHIM => (length + 1) * 8,
            AUTHENTICATION => (length + 2) * 4,
            FRAGMENT => {
                let [high, low] = pair(header, 2)?;
                if high != 0 || low & !7 != 0 {
                    // One behind the first, which tells what it belongs to.
                    return Some(at + 8);
                }
                fragment = true;
                8
            }
            ICMP => break,
            _ => return Some(at),
        };
        next = *header.first()?;
        at += length;
    }
    let message = seen.get(at..)?;
    let Some(options) = options(*message.first()?) else { return Some(at + 1) };
    // All of it has to be seen.
    let whole = seen.len() == bytes && !fragment;
    (whole && are_own(mac, message.get(options..)?)).then_some(bytes)
}

/// Whether each option with an address has this one.
fn are_own(mac: Mac, mut options: &[u8]) -> bool {
    while let Some((&kind, rest)) = options.split_first() {
        let length = rest.first().map_or(0, |units| usize::from(*units) * 8);
        let Some((option, others)) = options.split_at_checked(length).filter(|_| length != 0) else {
            return false;
        };
        if ADDRESSES.contains(&kind) && option.get(2..8) != Some(&mac) {
            return false;
        }
        options = others;
    }
    true
}

fn pair(bytes: &[u8], at: usize) -> Option<[u8; 2]> {
    bytes.get(at..at + 2)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        [&[0x60, 0, 0, 0, high, low, next, 255], &[0xfe; 32][..], payload].concat()
    }

    fn option(kind: u8, mac: Mac) -> Vec<u8> {
        [&[kind, 1][..], &mac].concat()
    }

    fn message(kind: u8, options: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &vec![0; super::options(kind).unwrap_or(8) - 4], options].concat()
    }

    fn allows(next: u8, payload: &[u8]) -> bool {
        judge(MINE, &packet(next, payload)).is_some()
    }

    #[test]
    fn each_message_tells_its_own_address() {
        for kind in 133..=137 {
            for which in ADDRESSES {
                assert!(allows(ICMP, &message(kind, &option(which, MINE))), "{kind}");
                assert!(!allows(ICMP, &message(kind, &option(which, OTHER))), "{kind}");
                // Behind another option, and twice.
                let prefix = [&[3, 4][..], &[0; 30]].concat();
                let hidden = [prefix, option(which, MINE), option(which, OTHER)].concat();
                assert!(!allows(ICMP, &message(kind, &hidden)), "{kind}");
            }
            assert!(allows(ICMP, &message(kind, &[])), "{kind}");
        }
        assert!(allows(ICMP, &message(128, &option(1, OTHER))), "an echo's data");
        assert!(allows(17, &message(135, &option(1, OTHER))), "another protocol");
    }

    #[test]
    fn options_that_lie_are_refused() {
        let advertises = |options: &[u8]| allows(ICMP, &message(136, options));
        assert!(!advertises(&[3, 0, 0, 0, 0, 0, 0, 0]), "no length");
        assert!(!advertises(&[3, 2, 0, 0, 0, 0, 0, 0]), "beyond the end");
        assert!(!advertises(&[3]), "no length at all");
        assert!(!advertises(&[&[2, 2][..], &OTHER, &[0; 8]].concat()), "longer than an address");
        // A message that is longer than the packet says is padded.
        let mut padded = packet(ICMP, &message(136, &[]));
        padded.extend(option(2, OTHER));
        assert!(judge(MINE, &padded).is_some());
        // And one that is shorter was not seen as a whole.
        let whole = packet(ICMP, &message(136, &option(2, MINE)));
        assert_eq!(judge(MINE, &whole), Some(whole.len()));
        assert!((NEXT..whole.len()).all(|bytes| judge(MINE, &whole[..bytes]).is_none()));
    }

    #[test]
    fn it_hides_behind_no_header() {
        let (good, bad) = (message(135, &option(1, MINE)), message(135, &option(1, OTHER)));
        let behind = |next: u8, header: &[u8], message: &[u8]| allows(next, &[header, message].concat());
        for next in [HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY, HOST_IDENTITY, SHIM] {
            let header = [&[ICMP, 1][..], &[0; 14]].concat();
            assert!(behind(next, &header, &good) && !behind(next, &header, &bad), "{next}");
            let two = [&[next, 0][..], &[0; 6], &header].concat();
            assert!(behind(HOP_BY_HOP, &two, &good) && !behind(HOP_BY_HOP, &two, &bad), "{next}");
            assert!(!behind(next, &[ICMP, 255, 0, 0, 0, 0, 0, 0], &good), "a header that is not all there");
        }
        let header = [&[ICMP, 4][..], &[0; 22]].concat();
        assert!(behind(AUTHENTICATION, &header, &good) && !behind(AUTHENTICATION, &header, &bad));
        // In fragments it is not at all; other things are.
        for (more, offset) in [(0, 0), (1, 0)] {
            let header = [ICMP, 0, 0, offset | more, 0, 0, 0, 1];
            assert!(!behind(FRAGMENT, &header, &good));
            assert!(behind(FRAGMENT, &header, &message(128, &[])));
        }
        assert!(behind(FRAGMENT, &[ICMP, 0, 0, 9, 0, 0, 0, 1], &bad), "the rest of something else");
        assert!(!allows(FRAGMENT, &[DESTINATION, 0, 0, 1, 0, 0, 0, 1]), "a first one without its headers");
        // What a node can make nothing of.
        assert!(!allows(HOP_BY_HOP, &[]) && !allows(ICMP, &[]));
        assert!(allows(HOP_BY_HOP, &[17, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
    }

    proptest! {
        /// Whatever is let through and has a message of neighbour discovery right behind its header tells no other address.
        #[test]
        fn nothing_gets_by(kind in 133_u8..=137, options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let packet = packet(ICMP, &message(kind, &options));
            if judge(MINE, &packet).is_some() {
                let mut at = 0;
                while at < options.len() {
                    prop_assert!(!ADDRESSES.contains(&options[at]) || options[at + 2..at + 8] == MINE);
                    at += usize::from(options[at + 1]) * 8;
                }
            }
        }

        #[test]
        fn any_packet_is_judged(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), next in 0_u8..61) {
            if let Some(place) = bytes.get_mut(NEXT) {
                *place = next;
            }
            if let Some(judged) = judge(MINE, &bytes) {
                prop_assert!(judged >= HEADER && judged <= HEADER + usize::from(u16::MAX));
            }
        }
    }
}
