//! WebSocket frames, as a server reads and writes them (RFC 6455). Bytes in, messages out; no IO.
//!
//! Reading needs memory only while something is incomplete: an idle connection holds no buffer.

/// The payload of a control frame.
pub const CONTROL_BYTES_MAX: usize = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a client sent, whole and unmasked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    Pong,
    /// With the code to answer with, if the client gave one.
    Close(Option<u16>),
}

/// Why the bytes of a client cannot be read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// They are no frames of a client.
    Protocol,
    /// A text or a close reason is no UTF-8.
    NotUtf8,
    /// The message is larger than the limit.
    TooLarge,
}

/// Reads one connection's frames.
pub struct Decoder {
    message_bytes_max: usize,
    /// Received and not decoded yet, from `decoded` on.
    received: Vec<u8>,
    decoded: usize,
    /// The parts that came so far of a message in several frames.
    parts: Option<Parts>,
}

struct Parts {
    opcode: u8,
    payload: Vec<u8>,
}

/// The head of a frame.
struct Head {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    head_bytes: usize,
    payload_bytes: usize,
}

impl Decoder {
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            received: Vec::new(),
            decoded: 0,
            parts: None,
        }
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next message of what was received; `None` if more has to come first. Nothing can be
    /// read after an error.
    pub fn decode(&mut self) -> Result<Option<Incoming>, Malformed> {
        while let Some(head) = self.head()? {
            let end = head.head_bytes + head.payload_bytes;
            let unread = &mut self.received[self.decoded..];
            let Some(payload) = unread.get_mut(head.head_bytes..end) else {
                break;
            };
            unmask(payload, head.mask);
            let incoming = take(&head, payload, &mut self.parts)?;
            self.decoded += end;
            if incoming.is_some() {
                self.give_back();
                return Ok(incoming);
            }
        }
        self.give_back();
        Ok(None)
    }

    /// Memory of what is decoded.
    fn give_back(&mut self) {
        if self.decoded == self.received.len() {
            self.received = Vec::new();
        } else if self.decoded > self.received.len() / 2 {
            self.received.drain(..self.decoded);
        } else {
            return;
        }
        self.decoded = 0;
    }

    /// `None` while it is incomplete. What is wrong is told before the payload is there.
    fn head(&self) -> Result<Option<Head>, Malformed> {
        let unread = &self.received[self.decoded..];
        let [first, second, rest @ ..] = unread else {
            return Ok(None);
        };
        let (is_final, opcode) = (first & FINAL != 0, first & 0x0F);
        if first & RESERVED != 0 || second & MASKED == 0 {
            return Err(Malformed::Protocol);
        }
        let in_parts = self.parts.as_ref().map_or(0, |parts| parts.payload.len());
        let short = usize::from(second & !MASKED);
        match opcode {
            CONTINUATION if self.parts.is_some() => {}
            TEXT | BINARY if self.parts.is_none() => {}
            CLOSE | PING | PONG if is_final && short <= CONTROL_BYTES_MAX => {}
            _ => return Err(Malformed::Protocol),
        }
        let (payload_bytes, rest) = match (short, rest) {
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
                let bytes = [*a, *b, *c, *d, *e, *f, *g, *h];
                (u64::from_be_bytes(bytes), rest)
            }
            (126 | 127, _) => return Ok(None),
            (short, rest) => (short as u64, rest),
        };
        let room = match opcode {
            CLOSE | PING | PONG => CONTROL_BYTES_MAX,
            _ => self.message_bytes_max.saturating_sub(in_parts),
        };
        let payload_bytes = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
        if payload_bytes > room {
            return Err(Malformed::TooLarge);
        }
        let [a, b, c, d, rest @ ..] = rest else {
            return Ok(None);
        };
        Ok(Some(Head {
            is_final,
            opcode,
            mask: [*a, *b, *c, *d],
            head_bytes: unread.len() - rest.len(),
            payload_bytes,
        }))
    }
}

/// What a frame completes, if anything.
fn take(
    head: &Head,
    payload: &[u8],
    parts: &mut Option<Parts>,
) -> Result<Option<Incoming>, Malformed> {
    let (opcode, payload) = match head.opcode {
        CLOSE => return close(payload).map(Some),
        PING => return Ok(Some(Incoming::Ping(payload.to_vec()))),
        PONG => return Ok(Some(Incoming::Pong)),
        opcode => {
            let mut whole = parts.take().unwrap_or(Parts {
                opcode,
                payload: Vec::new(),
            });
            whole.payload.extend_from_slice(payload);
            if !head.is_final {
                *parts = Some(whole);
                return Ok(None);
            }
            (whole.opcode, whole.payload)
        }
    };
    Ok(Some(match opcode {
        TEXT => Incoming::Text(String::from_utf8(payload).map_err(|_| Malformed::NotUtf8)?),
        _ => Incoming::Binary(payload),
    }))
}

fn close(payload: &[u8]) -> Result<Incoming, Malformed> {
    match payload {
        [] => Ok(Incoming::Close(None)),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Malformed::Protocol);
            }
            std::str::from_utf8(reason).map_err(|_| Malformed::NotUtf8)?;
            Ok(Incoming::Close(Some(code)))
        }
        _ => Err(Malformed::Protocol),
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    // In pieces that the compiler turns into wide operations.
    let wide: [u8; 16] = std::array::from_fn(|n| mask[n % 4]);
    for piece in payload.chunks_mut(wide.len()) {
        for (byte, mask) in piece.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
}

/// Appends a text message to bytes that end where a frame ends.
pub fn push_text(bytes: &mut Vec<u8>, text: &str) {
    push_head(bytes, TEXT, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

pub fn push_ping(bytes: &mut Vec<u8>) {
    push_head(bytes, PING, 0);
}

/// `payload` is that of the ping.
pub fn push_pong(bytes: &mut Vec<u8>, payload: &[u8]) {
    push_head(bytes, PONG, payload.len());
    bytes.extend_from_slice(payload);
}

/// Without a code the frame is empty. A longer reason is cut off.
pub fn push_close(bytes: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else {
        return push_head(bytes, CLOSE, 0);
    };
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    push_head(bytes, CLOSE, 2 + reason.len());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(reason.as_bytes());
}

fn push_head(bytes: &mut Vec<u8>, opcode: u8, payload_bytes: usize) {
    bytes.push(FINAL | opcode);
    match payload_bytes {
        0..=125 => bytes.push(payload_bytes as u8),
        126..=0xFFFF => {
            bytes.push(126);
            bytes.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            bytes.push(127);
            bytes.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As a client writes it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_head(&mut bytes, 0, payload.len());
        bytes[0] = first;
        bytes[1] |= MASKED;
        let mask = [0x12, 0x34, 0x56, 0x78];
        bytes.extend_from_slice(&mask);
        let masked = payload.iter().zip(mask.iter().cycle());
        bytes.extend(masked.map(|(byte, mask)| byte ^ mask));
        bytes
    }

    fn decoder() -> Decoder {
        Decoder::new(1000)
    }

    fn read(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Incoming>, Malformed> {
        decoder.receive(bytes);
        let mut all = Vec::new();
        while let Some(incoming) = decoder.decode()? {
            all.push(incoming);
        }
        Ok(all)
    }

    fn text(text: &str) -> Incoming {
        Incoming::Text(text.into())
    }

    #[test]
    fn the_example_of_the_rfc() {
        let hello = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(read(&mut decoder(), &hello), Ok(vec![text("Hello")]));
        let mut bytes = Vec::new();
        push_text(&mut bytes, "Hello");
        assert_eq!(bytes, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    }

    #[test]
    fn a_message_may_come_in_frames_with_control_frames_in_between() {
        let mut bytes = frame(TEXT, b"a\xc3");
        bytes.extend(frame(FINAL | PING, b"p"));
        bytes.extend(frame(CONTINUATION, b"\xa4"));
        bytes.extend(frame(FINAL | CONTINUATION, b""));
        bytes.extend(frame(FINAL | BINARY, b"b"));
        bytes.extend(frame(FINAL | PONG, b"b"));
        bytes.extend(frame(FINAL | CLOSE, b"\x03\xe8bye"));
        let expected = vec![
            Incoming::Ping(b"p".to_vec()),
            text("aä"),
            Incoming::Binary(b"b".to_vec()),
            Incoming::Pong,
            Incoming::Close(Some(1000)),
        ];
        assert_eq!(read(&mut decoder(), &bytes), Ok(expected.clone()));
        let mut one_by_one = decoder();
        let got: Vec<_> = (bytes.iter())
            .flat_map(|byte| read(&mut one_by_one, &[*byte]).unwrap())
            .collect();
        assert_eq!(got, expected);
        assert_eq!(one_by_one.received.capacity(), 0);
    }

    #[test]
    fn what_is_no_frame_of_a_client_is_told_at_once() {
        let long = |first, bytes: u64| {
            let mut head = vec![first, MASKED | 127];
            head.extend(bytes.to_be_bytes());
            head
        };
        for (bytes, why) in [
            (vec![FINAL | TEXT, 1, b'x'], Malformed::Protocol),
            (vec![FINAL | 0x40 | TEXT, MASKED], Malformed::Protocol),
            (frame(FINAL | CONTINUATION, b""), Malformed::Protocol),
            (frame(FINAL | 0x3, b""), Malformed::Protocol),
            (frame(FINAL | 0xB, b""), Malformed::Protocol),
            (frame(PING, b""), Malformed::Protocol),
            (vec![FINAL | PING, MASKED | 126], Malformed::Protocol),
            (frame(FINAL | CLOSE, b"x"), Malformed::Protocol),
            (frame(FINAL | CLOSE, b"\x03\xed"), Malformed::Protocol),
            (frame(FINAL | CLOSE, b"\x00\x00"), Malformed::Protocol),
            (frame(FINAL | CLOSE, b"\x03\xe8\xff"), Malformed::NotUtf8),
            (frame(FINAL | TEXT, b"\xff"), Malformed::NotUtf8),
            (long(FINAL | TEXT, 1001), Malformed::TooLarge),
            (long(FINAL | BINARY, u64::MAX), Malformed::TooLarge),
        ] {
            assert_eq!(read(&mut decoder(), &bytes), Err(why), "{bytes:?}");
        }
        let mut in_parts = decoder();
        assert_eq!(read(&mut in_parts, &frame(TEXT, &[b'x'; 600])), Ok(vec![]));
        let second = frame(FINAL | TEXT, b"");
        assert_eq!(read(&mut in_parts, &second), Err(Malformed::Protocol));
        let mut in_parts = decoder();
        assert_eq!(read(&mut in_parts, &frame(TEXT, &[b'x'; 600])), Ok(vec![]));
        let more = long(CONTINUATION, 401);
        assert_eq!(read(&mut in_parts, &more), Err(Malformed::TooLarge));
    }

    #[test]
    fn a_reason_has_room_in_its_frame() {
        let mut bytes = Vec::new();
        push_close(&mut bytes, Some(4000), &"ä".repeat(100));
        assert_eq!(bytes.len(), 2 + 2 + 122);
        bytes.clear();
        push_close(&mut bytes, None, "nobody reads this");
        assert_eq!(bytes, [0x88, 0]);
    }

    proptest! {
        #[test]
        fn any_text_comes_through(texts in prop::collection::vec(".{0,200}", 1..4), cut in 1..50_usize) {
            let bytes: Vec<u8> = texts.iter().flat_map(|t| frame(FINAL | TEXT, t.as_bytes())).collect();
            let mut decoder = Decoder::new(1000);
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                got.extend(read(&mut decoder, piece).unwrap());
            }
            prop_assert_eq!(got, texts.iter().map(|t| text(t)).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&mut decoder(), &bytes);
        }
    }
}
