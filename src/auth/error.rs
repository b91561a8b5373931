use std::fmt;

use super::TIMESTAMP_WINDOW_SECS;

/// Why a request is refused, always with status 401. `Display` is hosted's text (`pusher.md` 5.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthError {
    RepeatedParameter(&'static str),
    MissingKey,
    UnknownKey,
    VersionRequired,
    VersionNotSupported,
    TimestampRequired,
    TimestampExpired {
        given_secs: i64,
        now_secs: i64,
    },
    InvalidSignature {
        string_to_sign: String,
        sent: Option<String>,
    },
    InvalidBodyMd5,
}

impl AuthError {
    /// In a word, with nothing of what was sent.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RepeatedParameter(_) => "repeated_parameter",
            Self::MissingKey | Self::UnknownKey => "key",
            Self::VersionRequired | Self::VersionNotSupported => "version",
            Self::TimestampRequired | Self::TimestampExpired { .. } => "timestamp",
            Self::InvalidSignature { .. } => "signature",
            Self::InvalidBodyMd5 => "body_md5",
        }
    }
}

impl std::error::Error for AuthError {}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RepeatedParameter(name) => write!(f, "Repeated parameter: {name}"),
            Self::MissingKey => f.write_str("Missing parameter: auth_key"),
            Self::UnknownKey => f.write_str("Unknown auth_key"),
            Self::VersionRequired => f.write_str("Version required"),
            Self::VersionNotSupported => f.write_str("Version not supported"),
            Self::TimestampRequired => f.write_str("Timestamp required"),
            Self::TimestampExpired {
                given_secs,
                now_secs,
            } => write!(
                f,
                "Timestamp expired: Given timestamp ({}) not within {TIMESTAMP_WINDOW_SECS}s of \
                 server time ({})",
                iso8601(*given_secs),
                iso8601(*now_secs)
            ),
            Self::InvalidSignature {
                string_to_sign,
                sent,
            } => write!(
                f,
                "Invalid signature: you should have sent HmacSHA256Hex({}, your_secret_key), but \
                 you sent {}",
                inspect(string_to_sign),
                sent.as_deref().map_or("nil".into(), inspect)
            ),
            Self::InvalidBodyMd5 => f.write_str("Invalid body_md5"),
        }
    }
}

/// As in `2012-11-16T17:49:39Z`, for the years 1970 to 9999; other moments show as the nearest.
fn iso8601(secs: i64) -> String {
    let secs = secs.clamp(0, 253_402_300_799);
    let (days, secs) = (secs / 86_400, secs % 86_400);
    // Counted in years that begin in March the leap day comes last. 719 468 days lie between
    // 0000-03-01 and 1970-01-01, 146 097 make 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day + 2) / 153;
    let day = day - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (secs / 3_600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `text` as Ruby's `inspect` writes it, which is how hosted shows strings.
fn inspect(text: &str) -> String {
    let mut shown = String::from('"');
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '"' | '\\' => shown.extend(['\\', character]),
            '#' if matches!(rest.peek(), Some('{' | '$' | '@')) => shown.push_str("\\#"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            control if control.is_control() => {
                shown.push_str(&format!("\\u{:04X}", u32::from(control)));
            }
            printable => shown.push(printable),
        }
    }
    shown.push('"');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_shown_as_a_date() {
        for (secs, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (-5, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_353_088_179, "2012-11-16T17:49:39Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso8601(secs), date);
        }
    }

    #[test]
    fn strings_are_shown_as_ruby_shows_them() {
        assert_eq!(inspect("a\"\\\n#{x}#x\0ж"), r##""a\"\\\n\#{x}#x\u0000ж""##);
    }
}
