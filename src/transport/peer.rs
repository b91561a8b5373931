//! Who is at the other end: the address and the scheme that count, also behind proxies, and how
//! many connections an address has.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warp::http::HeaderMap;

/// Who sent a request; the server puts it into the request's extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// It came over TLS, to us or to the proxy in front of us.
    pub secure: bool,
    /// Its TLS connection began with a certificate that was asked for and verified here.
    pub certified: bool,
}

/// The proxies whose word is taken for whom they stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustedProxies(pub Vec<Network>);

impl TrustedProxies {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The peer behind a request. `X-Forwarded-For` is read from its end, where the nearest proxy
    /// wrote: whatever stands in front of the first address that is no proxy of ours was written by
    /// somebody else.
    pub fn peer(&self, direct: Peer, headers: &HeaderMap) -> Peer {
        if self.0.is_empty() || !self.contains(direct.address) {
            return direct;
        }
        let values = headers.get_all("x-forwarded-for").iter();
        let listed = values.flat_map(|v| v.to_str().unwrap_or_default().split(','));
        let listed: Vec<_> = listed.map(str::trim).collect();
        let mut address = direct.address;
        for text in listed.into_iter().rev() {
            let Some(forwarded) = parse_address(text) else {
                break;
            };
            address = forwarded;
            if !self.contains(address) {
                break;
            }
        }
        let scheme = headers.get("x-forwarded-proto");
        let secure = match scheme.map(|scheme| scheme.as_bytes()) {
            Some(scheme) => matches!(scheme, b"https" | b"wss"),
            None => direct.secure,
        };
        Peer {
            address,
            secure,
            ..direct
        }
    }
}

/// With or without a port; IPv6 with a port is in brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = (bare.unwrap_or(text).parse::<IpAddr>().ok())
        .or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))?;
    Some(address.to_canonical())
}

/// An address, or all that share its first bits: `10.0.0.0/8`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse::<IpAddr>().ok()?, Some(bits.parse().ok()?)),
            None => (text.parse::<IpAddr>().ok()?, None),
        };
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(bits_max);
        (bits <= bits_max).then_some(Self { address, bits })
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differs = u64::from(own.to_bits() ^ other.to_bits());
                differs >> (32 - u32::from(self.bits)) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differs = own.to_bits() ^ other.to_bits();
                differs.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// How many connections each address has. Of IPv6 the first 64 bits count: whoever has one such
/// address has all of them.
#[derive(Clone)]
pub struct Addresses {
    connections_max: Option<NonZeroUsize>,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A connection of an address, until it is dropped.
pub struct Place {
    addresses: Addresses,
    address: IpAddr,
    room: Room,
}

/// Whether there is room for one more connection of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    Free,
    /// It is to be told that it is one too many.
    Full,
    /// There are as many again that were told so and did not go.
    Crowded,
}

/// What a connection counts as: always for the address that its latest request came from.
#[derive(Clone, Default)]
pub struct Seat(Arc<Mutex<Option<Place>>>);

impl Addresses {
    /// Absent: no limit, and nothing is counted.
    pub fn new(connections_max: Option<NonZeroUsize>) -> Self {
        Self {
            connections_max,
            counts: Arc::default(),
        }
    }

    /// The same connections with another limit. Where there was none before, only those count that
    /// come from now on.
    pub fn limited(&self, connections_max: Option<NonZeroUsize>) -> Self {
        Self {
            connections_max,
            counts: self.counts.clone(),
        }
    }

    /// One more connection of the address.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let max = self.connections_max?.get();
        let address = masked(address);
        let mut counts = self.lock();
        let count = counts.entry(address).or_default();
        *count += 1;
        let room = match *count {
            count if count <= max => Room::Free,
            count if count <= max.saturating_mul(2) => Room::Full,
            _ => Room::Crowded,
        };
        drop(counts);
        Some(Place {
            addresses: self.clone(),
            address,
            room,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl Seat {
    /// Counts the connection for this address from now on.
    pub fn take(&self, addresses: &Addresses, address: IpAddr) -> Room {
        let mut seat = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if (seat.as_ref()).is_none_or(|place| place.address != masked(address)) {
            // The old place is free before the new one is taken.
            *seat = None;
            *seat = addresses.enter(address);
        }
        seat.as_ref().map_or(Room::Free, |place| place.room)
    }
}

fn masked(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> TrustedProxies {
        TrustedProxies(texts.iter().map(|t| Network::parse(t).unwrap()).collect())
    }

    #[test]
    fn networks_contain_what_shares_their_first_bits() {
        for (network, address, contains) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "::1", true),
        ] {
            let contained = networks(&[network]).contains(address.parse().unwrap());
            assert_eq!(contained, contains, "{network} {address}");
        }
        for bad in [
            "",
            "10",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/-1",
            "a/8",
            "10.0.0.0/",
        ] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_proxies_are_believed_and_only_as_far_as_they_are_ours() {
        let proxies = networks(&["10.0.0.0/8", "::1"]);
        for (direct, forwarded, proto, address, secure) in [
            ("1.1.1.1", "2.2.2.2", "https", "1.1.1.1", false),
            ("10.0.0.1", "2.2.2.2", "https", "2.2.2.2", true),
            (
                "10.0.0.1",
                "6.6.6.6, 2.2.2.2, 10.9.9.9",
                "http",
                "2.2.2.2",
                false,
            ),
            ("10.0.0.1", "10.0.0.7,10.0.0.8", "wss", "10.0.0.7", true),
            ("::1", "[2001:db8::1]:80", "https", "2001:db8::1", true),
            ("::1", "2.2.2.2:1234", "", "2.2.2.2", false),
            ("10.0.0.1", "2.2.2.2, unknown", "https", "10.0.0.1", true),
            ("10.0.0.1", "", "https", "10.0.0.1", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            headers.insert("x-forwarded-proto", proto.parse().unwrap());
            let direct = Peer {
                address: direct.parse().unwrap(),
                secure: false,
                certified: false,
            };
            let peer = proxies.peer(direct, &headers);
            assert_eq!(
                peer.address,
                address.parse::<IpAddr>().unwrap(),
                "{forwarded}"
            );
            assert_eq!(peer.secure, secure, "{forwarded}");
        }
    }

    #[test]
    fn an_address_has_room_again_when_a_connection_has_gone() {
        let addresses = Addresses::new(NonZeroUsize::new(2));
        let (one, same_house) = ("2001:db8::1", "2001:db8::2:0:1");
        let other = "2001:db8:0:1::1";
        let take = |address: &str| {
            let seat = Seat::default();
            let has_room = seat.take(&addresses, address.parse().unwrap());
            (seat, has_room == Room::Free)
        };
        let (first, has_room) = take(one);
        assert!(has_room);
        assert_eq!(first.take(&addresses, one.parse().unwrap()), Room::Free);
        let second = take(same_house);
        assert!(second.1 && take(other).1);
        assert!(!take(one).1);
        drop(first);
        assert!(take(one).1);
        second.0.take(&addresses, other.parse().unwrap());
        drop(second);
        assert!(addresses.lock().is_empty());
    }
}
