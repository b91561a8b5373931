use std::borrow::Cow;

use super::hex_digit;

/// The decoded parameters of a verified request. Names are in lower case.
#[derive(Clone, PartialEq, Eq)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// The value of a parameter, the last one if it is repeated.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// Every value of a parameter in the order of the query, as in `all("channels[]")`.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn parse(query: &str, plus: Plus) -> Self {
        let decode = |text: &str| match plus {
            Plus::IsSpace if text.contains('+') => percent_decode(&text.replace('+', " ")),
            Plus::IsSpace | Plus::IsPlus => percent_decode(text),
        };
        let parameters = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .map(|(name, value)| (lower_case(decode(name)), decode(value)));
        Self::sorted(parameters.collect())
    }

    /// With more of them, decoded.
    pub(super) fn and(self, more: &[(&str, &str)]) -> Self {
        let mut parameters = self.0;
        let more = more.iter();
        parameters.extend(more.map(|(name, value)| (name.to_string(), value.to_string())));
        Self::sorted(parameters)
    }

    fn sorted(mut parameters: Vec<(String, String)>) -> Self {
        // Signers sort arrays under their bare name, before they write the brackets.
        let bare = |name: &str| name.strip_suffix("[]").unwrap_or(name).len();
        parameters.sort_by(|(a, _), (b, _)| a[..bare(a)].cmp(&b[..bare(b)]));
        Self(parameters)
    }

    pub(super) fn string_to_sign(&self, method: &str, path: &str) -> String {
        let parameters = self.0.iter();
        let length = parameters.fold(method.len() + 1 + path.len(), |sum, (name, value)| {
            sum + name.len() + value.len() + 2
        });
        let mut text = String::with_capacity(length + 1);
        text.push_str(method);
        text.make_ascii_uppercase();
        text.push('\n');
        text.push_str(path);
        let mut before = '\n';
        for (name, value) in self.0.iter().filter(|(name, _)| name != "auth_signature") {
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
fn lower_case(text: String) -> String {
    match text
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
    {
        true => text,
        false => text.to_lowercase(),
    }
}

/// How a `+` in a query is meant: Ruby escapes a space as `+`, Node and Go leave a plus as it is.
#[derive(Clone, Copy)]
pub(super) enum Plus {
    IsSpace,
    IsPlus,
}

/// Turns `%3B` into `;`. A `%` without two hex digits stands for itself; what is not UTF-8 becomes
/// replacement characters.
pub fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
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
    String::from_utf8_lossy(&decoded).into_owned()
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
