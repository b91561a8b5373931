//! Who is at the other end: the address and the scheme that count, also behind proxies, and how
//! many connections an address has and how often it is refused something.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use warp::http::{HeaderMap, HeaderName};

use crate::metrics::{Limit, REFUSALS};
use crate::rate::Rate;

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

// Names that are read already: what a request says is looked up at every one.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

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
        let values = headers.get_all(FORWARDED_FOR).iter();
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
        let scheme = headers.get(FORWARDED_PROTO);
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

/// How many connections each address has, and how often it was refused something lately. Of IPv6
/// the first 64 bits count: whoever has one such address has all of them.
#[derive(Clone)]
pub struct Addresses {
    limits: AddressLimits,
    counts: Arc<Counts>,
}

/// What one address may have and do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressLimits {
    pub connections_max: Option<NonZeroUsize>,
    /// Beyond it the address has to wait for more.
    pub refusals_per_sec_max: usize,
}

#[derive(Default)]
struct Counts {
    connections: Mutex<HashMap<IpAddr, usize>>,
    /// Addresses that are not here were refused nothing lately.
    refusals: Mutex<HashMap<IpAddr, Rate>>,
}

/// Nobody waits longer, however much its address was refused.
const WAIT_AT_MOST: Duration = Duration::from_millis(500);

/// A connection of an address, until it is dropped.
pub struct Place {
    addresses: Addresses,
    /// Masked.
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
    pub fn new(limits: AddressLimits) -> Self {
        Self {
            limits,
            counts: Arc::default(),
        }
    }

    /// The same connections and refusals with other limits.
    pub fn limited(&self, limits: AddressLimits) -> Self {
        Self {
            limits,
            counts: self.counts.clone(),
        }
    }

    /// One more connection of the address, which is masked.
    fn enter(&self, address: IpAddr) -> Place {
        let max = self
            .limits
            .connections_max
            .map_or(usize::MAX, |max| max.get());
        let mut connections = lock(&self.counts.connections);
        let count = connections.entry(address).or_default();
        *count += 1;
        let room = match *count {
            count if count <= max => Room::Free,
            count if count <= max.saturating_mul(2) => Room::Full,
            _ => Room::Crowded,
        };
        drop(connections);
        Place {
            addresses: self.clone(),
            address,
            room,
        }
    }

    /// Waits before the address learns of one more refusal, if there were too many. Whatever it is
    /// not refused waits for nothing: others may share the address with whoever misbehaves.
    pub async fn refuse(&self, address: IpAddr) {
        let wait = self.note_refusal(masked(address));
        if !wait.is_zero() {
            REFUSALS.count(Limit::AddressRefusals);
            sleep(wait).await;
        }
    }

    /// How long the address, which is masked, is to wait.
    fn note_refusal(&self, address: IpAddr) -> Duration {
        let per_sec = self.limits.refusals_per_sec_max;
        let mut refusals = lock(&self.counts.refusals);
        // Before it grows, so that it holds no more than twice those of a second.
        if refusals.len() == refusals.capacity() {
            refusals.retain(|_, rate| !rate.is_full());
        }
        let rate = refusals
            .entry(address)
            .or_insert_with(|| Rate::per_sec(per_sec));
        rate.change(per_sec);
        rate.take(1, WAIT_AT_MOST)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = lock(&self.addresses.counts.connections);
        if let Some(count) = connections.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.address);
            }
        }
    }
}

impl Seat {
    /// Counts the connection for this address from now on.
    pub fn take(&self, addresses: &Addresses, address: IpAddr) -> Room {
        let address = masked(address);
        let mut seat = lock(&self.0);
        if let Some(place) = &*seat
            && place.address == address
        {
            return place.room;
        }
        // The old place is free before the new one is taken.
        *seat = None;
        seat.insert(addresses.enter(address)).room
    }

    /// As [`Addresses::refuse`].
    pub async fn refuse(&self) {
        let place = lock(&self.0)
            .as_ref()
            .map(|place| (place.addresses.clone(), place.address));
        if let Some((addresses, address)) = place {
            addresses.refuse(address).await;
        }
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
        let addresses = Addresses::new(AddressLimits {
            connections_max: NonZeroUsize::new(2),
            refusals_per_sec_max: 10,
        });
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
        assert!(lock(&addresses.counts.connections).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_refused_too_much_waits() {
        let addresses = Addresses::new(AddressLimits {
            connections_max: None,
            refusals_per_sec_max: 10,
        });
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (one, other) = (address("2001:db8::"), address("2001:db8:0:1::"));
        let ms = Duration::from_millis;
        for _ in 0..10 {
            assert_eq!(addresses.note_refusal(one), Duration::ZERO);
        }
        assert_eq!(addresses.note_refusal(one), ms(100));
        assert_eq!(addresses.note_refusal(one), ms(200));
        assert_eq!(addresses.note_refusal(other), Duration::ZERO);
        for _ in 0..1_000 {
            addresses.note_refusal(one);
        }
        assert_eq!(addresses.note_refusal(one), WAIT_AT_MOST);
        tokio::time::advance(ms(400)).await;
        assert_eq!(addresses.note_refusal(one), ms(200));
        tokio::time::advance(ms(200 + 1_000)).await;
        for _ in 0..10 {
            assert_eq!(addresses.note_refusal(one), Duration::ZERO);
        }
        assert_eq!(addresses.note_refusal(one), ms(100));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_were_refused_something_long_ago_are_forgotten() {
        let addresses = Addresses::new(AddressLimits {
            connections_max: None,
            refusals_per_sec_max: 10,
        });
        for nth in 0..10_000_u32 {
            addresses.note_refusal(IpAddr::V4(nth.into()));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let kept = lock(&addresses.counts.refusals).len();
        assert!(kept < 100, "{kept}");
    }
}
