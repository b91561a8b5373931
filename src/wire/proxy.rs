//! The header of the PROXY protocol, version 2: a proxy says for whom it connects, in front of
//! everything else (<https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>, 2.2).
//!
//! ```text
//! 12 bytes  signature
//!  1        version (2) and command: LOCAL, the proxy itself, or PROXY
//!  1        family and protocol of the addresses
//!  2        how many bytes follow
//!           source and destination address and port, then type-length-value fields
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The part of the header that says how long the rest is.
pub const START_BYTES: usize = 16;
/// More than addresses, a certificate's name, a host name and what clouds add take together.
pub const REST_BYTES_MAX: usize = 2048;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// The field that tells of the TLS between the client and the proxy, and its first bit.
const TLS_FIELD: u8 = 0x20;
const CLIENT_SPOKE_TLS: u8 = 0x01;

/// Who is at the other end of the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody: the proxy asks for itself, or does not know. The connection's own address counts.
    Proxy,
    Client {
        address: SocketAddr,
        /// The proxy ended the client's TLS.
        secure: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The connection begins with something else.
    Signature,
    Version,
    Command,
    /// More than [`REST_BYTES_MAX`].
    TooLong,
    /// Less than the addresses need, or a field that reaches beyond the end.
    TooShort,
}

/// How many bytes follow the start.
pub fn rest_bytes(start: &[u8; START_BYTES]) -> Result<usize, Malformed> {
    let (signature, head) = start.split_at(SIGNATURE.len());
    if signature != SIGNATURE {
        return Err(Malformed::Signature);
    }
    if head[0] >> 4 != 2 {
        return Err(Malformed::Version);
    }
    if head[0] & 0x0f > 1 {
        return Err(Malformed::Command);
    }
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    match length <= REST_BYTES_MAX {
        true => Ok(length),
        false => Err(Malformed::TooLong),
    }
}

/// `rest` is as long as [`rest_bytes`] says.
pub fn parse(start: &[u8; START_BYTES], rest: &[u8]) -> Result<Origin, Malformed> {
    if rest_bytes(start)? != rest.len() {
        return Err(Malformed::TooShort);
    }
    let is_local = start[12] & 0x0f == 0;
    let (ip, ports, fields) = match start[13] {
        _ if is_local => return Ok(Origin::Proxy),
        TCP4 => {
            let (ip, rest) = take::<4>(rest)?;
            let (_, rest) = take::<4>(rest)?;
            let (ports, fields) = take::<4>(rest)?;
            (IpAddr::from(Ipv4Addr::from(*ip)), ports, fields)
        }
        TCP6 => {
            let (ip, rest) = take::<16>(rest)?;
            let (_, rest) = take::<16>(rest)?;
            let (ports, fields) = take::<4>(rest)?;
            (IpAddr::from(Ipv6Addr::from(*ip)), ports, fields)
        }
        // Unix sockets, datagrams and whatever comes later are to be taken for unknown.
        _ => return Ok(Origin::Proxy),
    };
    let port = u16::from_be_bytes([ports[0], ports[1]]);
    Ok(Origin::Client {
        address: SocketAddr::new(ip, port),
        secure: spoke_tls(fields)?,
    })
}

fn spoke_tls(mut fields: &[u8]) -> Result<bool, Malformed> {
    let mut secure = false;
    while !fields.is_empty() {
        let ([kind, high, low], rest) = take::<3>(fields)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(Malformed::TooShort)?;
        if *kind == TLS_FIELD {
            secure = value
                .first()
                .is_some_and(|bits| bits & CLIENT_SPOKE_TLS != 0);
        }
        fields = rest;
    }
    Ok(secure)
}

fn take<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Malformed> {
    bytes.split_first_chunk().ok_or(Malformed::TooShort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend(rest);
        header
    }

    fn read(bytes: &[u8]) -> Result<Origin, Malformed> {
        let (start, rest) = bytes.split_first_chunk().unwrap();
        parse(start, rest)
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 0xd4, 0x31, 0x01, 0xbb];

    fn client(address: &str, secure: bool) -> Result<Origin, Malformed> {
        let address = address.parse().unwrap();
        Ok(Origin::Client { address, secure })
    }

    #[test]
    fn the_client_of_a_proxy_is_told() {
        assert_eq!(
            read(&header(1, TCP4, &V4)),
            client("203.0.113.7:54321", false)
        );
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 1;
        v6[32..34].copy_from_slice(&443u16.to_be_bytes());
        assert_eq!(
            read(&header(1, TCP6, &v6)),
            client("[2001:db8::1]:443", false)
        );
    }

    #[test]
    fn fields_behind_the_addresses_tell_of_tls_and_are_passed_over_otherwise() {
        let with = |fields: &[u8]| read(&header(1, TCP4, &[&V4, fields].concat()));
        let (plain, secure) = (
            client("203.0.113.7:54321", false),
            client("203.0.113.7:54321", true),
        );
        let alpn = [0x01, 0, 2, b'h', b'2'];
        let noop = [0x04, 0, 0];
        let tls = [TLS_FIELD, 0, 5, 0x01, 0, 0, 0, 0];
        let no_tls = [TLS_FIELD, 0, 5, 0x00, 0, 0, 0, 0];
        assert_eq!(with(&[&alpn[..], &noop].concat()), plain);
        assert_eq!(with(&[&alpn[..], &tls, &noop].concat()), secure);
        assert_eq!(with(&no_tls), plain);
        assert_eq!(with(&[TLS_FIELD, 0, 0]), plain);
        for broken in [&tls[..4], &tls[..2], &[0xff], &[0xff, 0xff, 0xff]] {
            assert_eq!(with(broken), Err(Malformed::TooShort), "{broken:?}");
        }
    }

    #[test]
    fn who_asks_for_itself_or_for_an_unknown_family_is_the_proxy() {
        assert_eq!(read(&header(0, TCP4, &V4)), Ok(Origin::Proxy));
        assert_eq!(read(&header(0, 0, &[])), Ok(Origin::Proxy));
        assert_eq!(read(&header(1, 0, &[])), Ok(Origin::Proxy));
        assert_eq!(read(&header(1, 0x31, &[0; 216])), Ok(Origin::Proxy));
        assert_eq!(read(&header(1, 0x12, &V4)), Ok(Origin::Proxy));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let good = header(1, TCP4, &V4);
        let spoiled = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert_eq!(spoiled(0, b'G'), Err(Malformed::Signature));
        assert_eq!(spoiled(11, b' '), Err(Malformed::Signature));
        assert_eq!(spoiled(12, 0x11), Err(Malformed::Version));
        assert_eq!(spoiled(12, 0x22), Err(Malformed::Command));
        assert_eq!(spoiled(14, 0xff), Err(Malformed::TooLong));
        assert_eq!(read(&header(1, TCP4, &V4[..11])), Err(Malformed::TooShort));
        assert_eq!(read(&header(1, TCP6, &V4)), Err(Malformed::TooShort));
        assert_eq!(read(&header(1, TCP4, &[])), Err(Malformed::TooShort));
        assert_eq!(read(b"PROXY TCP4 203.0."), Err(Malformed::Signature));
        let padding = REST_BYTES_MAX - V4.len() - 3;
        let noop = [
            &[0x04][..],
            &(padding as u16).to_be_bytes(),
            &vec![0; padding],
        ]
        .concat();
        let longest = [&V4[..], &noop].concat();
        assert!(read(&header(1, TCP4, &longest)).is_ok());
        let longer = [&longest[..], &[0]].concat();
        assert_eq!(read(&header(1, TCP4, &longer)), Err(Malformed::TooLong));
    }

    proptest! {
        #[test]
        fn nothing_panics(
            command in 0u8..4,
            family in any::<u8>(),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = read(&header(command, family, &rest));
        }
    }
}
