use std::borrow::Cow;
use std::ops::Range;

use super::hex_digit;

/// What libraries send, without room for parameters of their own.
const USUAL: usize = 5;

/// The decoded parameters of a verified request, in the order in which they are signed. Names are
/// in lower case.
#[derive(Clone)]
pub struct Parameters {
    /// Every name and every value.
    text: String,
    /// Where each name is in the text, and its value.
    places: Vec<(Range<usize>, Range<usize>)>,
}

impl Parameters {
    /// The value of a parameter, the last one if it is repeated.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// Every value of a parameter in the order of the query, as in `all("channels[]")`.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.iter().filter(move |(known, _)| *known == name);
        named.map(|(_, value)| value)
    }

    pub(super) fn parse(query: &str, plus: Plus) -> Self {
        let mut parameters = Self {
            text: String::with_capacity(query.len()),
            places: Vec::with_capacity(USUAL),
        };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = parameters.write(&lower_case(plus.decode(name)));
            let value = parameters.write(&plus.decode(value));
            parameters.places.push((name, value));
        }
        parameters.sort();
        parameters
    }

    /// With more of them, decoded.
    pub(super) fn and(mut self, more: &[(&str, &str)]) -> Self {
        for (name, value) in more {
            let place = (self.write(name), self.write(value));
            self.places.push(place);
        }
        self.sort();
        self
    }

    fn write(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }

    fn sort(&mut self) {
        // Signers sort arrays under their bare name, before they write the brackets.
        let bare = |name: &Range<usize>| {
            let name = &self.text[name.clone()];
            name.strip_suffix("[]").unwrap_or(name)
        };
        self.places.sort_by_key(|(name, _)| bare(name));
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let text = |place: &Range<usize>| &self.text[place.clone()];
        (self.places.iter()).map(move |(name, value)| (text(name), text(value)))
    }

    pub(super) fn string_to_sign(&self, method: &str, path: &str) -> String {
        // Each brings two signs of its own.
        let length = method.len() + path.len() + self.text.len() + 2 * self.places.len() + 2;
        let mut text = String::with_capacity(length);
        text.push_str(method);
        text.make_ascii_uppercase();
        text.push('\n');
        text.push_str(path);
        let mut before = '\n';
        for (name, value) in self.iter().filter(|(name, _)| *name != "auth_signature") {
            text.push(before);
            text.push_str(name);
            text.push('=');
            text.push_str(value);
            before = '&';
        }
        if before == '\n' {
            text.push(before);
        }
        text
    }
}

/// Most are already.
fn lower_case(text: Cow<'_, str>) -> Cow<'_, str> {
    match text
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
    {
        true => text,
        false => text.to_lowercase().into(),
    }
}

/// How a `+` in a query is meant: Ruby escapes a space as `+`, Node and Go leave a plus as it is.
#[derive(Clone, Copy)]
pub(super) enum Plus {
    IsSpace,
    IsPlus,
}

impl Plus {
    fn decode(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::IsSpace if text.contains('+') => {
                percent_decode(&text.replace('+', " ")).into_owned().into()
            }
            Self::IsSpace | Self::IsPlus => percent_decode(text),
        }
    }
}

/// Turns `%3B` into `;`. A `%` without two hex digits stands for itself; what is not UTF-8 becomes
/// replacement characters.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = match bytes[at..] {
            [b'%', high, low, ..] => hex_digit(high).zip(hex_digit(low)),
            _ => None,
        };
        let (byte, length) = match escaped {
            Some((high, low)) => (high << 4 | low, 3),
            None => (bytes[at], 1),
        };
        decoded.push(byte);
        at += length;
    }
    String::from_utf8_lossy(&decoded).into_owned().into()
}

/// Escapes everything but what RFC 3986 calls unreserved.
pub(super) fn percent_encode(text: &str) -> Cow<'_, str> {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    if text.bytes().all(is_unreserved) {
        return text.into();
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        match is_unreserved(byte) {
            true => encoded.push(byte.into()),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding_takes_any_text() {
        for (text, decoded) in [
            ("%3b%3B%23", ";;#"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%+1", "%zz%+1"),
            ("%%41", "%A"),
            ("ж%D0%B6", "жж"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(percent_decode(text), decoded, "{text}");
        }
        let text = "a b&c=ж%+/\0";
        assert_eq!(percent_decode(&percent_encode(text)), text);
    }
}
