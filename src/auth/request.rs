//! Signed requests of the HTTP API (`pusher.md` 5.2 to 5.4).

use md5::{Digest, Md5};

use super::parameters::{Parameters, Plus, percent_decode, percent_encode};
use super::{AuthError, Secret, TIMESTAMP_WINDOW_SECS, hex};

/// The parts of a request that its signature covers. `path` is raw, without the configured prefix
/// and the query; `query` is raw, without the `?`.
#[derive(Clone, Copy)]
pub struct SignedRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
}

impl SignedRequest<'_> {
    /// Makes the checks of `pusher.md` 5.4 in their order and returns the parameters in the reading
    /// under which the signature held. `now_secs` counts from 1970; `secret_of` knows the active
    /// keys of the app in question and no others.
    pub fn verify<'s>(
        &self,
        now_secs: u64,
        secret_of: impl Fn(&str) -> Option<&'s Secret>,
    ) -> Result<Parameters, AuthError> {
        let outcome = self.verify_as(Plus::IsSpace, now_secs, &secret_of);
        match outcome {
            Err(AuthError::InvalidSignature { .. }) if self.query.contains('+') => self
                .verify_as(Plus::IsPlus, now_secs, &secret_of)
                .or(outcome),
            _ => outcome,
        }
    }

    fn verify_as<'s>(
        &self,
        plus: Plus,
        now_secs: u64,
        secret_of: impl Fn(&str) -> Option<&'s Secret>,
    ) -> Result<Parameters, AuthError> {
        let parameters = Parameters::parse(self.query, plus);
        for name in AUTH_PARAMETERS {
            if parameters.all(name).nth(1).is_some() {
                return Err(AuthError::RepeatedParameter(name));
            }
        }

        let key = parameters.get("auth_key").ok_or(AuthError::MissingKey)?;
        let secret = secret_of(key).ok_or(AuthError::UnknownKey)?;

        let version = parameters.get("auth_version");
        if version.ok_or(AuthError::VersionRequired)? != "1.0" {
            return Err(AuthError::VersionNotSupported);
        }

        let timestamp = parameters.get("auth_timestamp");
        let given_secs = leading_integer(timestamp.ok_or(AuthError::TimestampRequired)?);
        let now_secs = i64::try_from(now_secs).unwrap_or(i64::MAX);
        if given_secs.abs_diff(now_secs) >= TIMESTAMP_WINDOW_SECS {
            return Err(AuthError::TimestampExpired {
                given_secs,
                now_secs,
            });
        }

        // Some HTTP stacks escape in transit what the library signed unescaped.
        let signature = parameters.get("auth_signature");
        let signed_text = |path: &str| parameters.string_to_sign(self.method, path);
        let holds_for = |path: &str| {
            signature.is_some_and(|given| secret.verify(signed_text(path).as_bytes(), given))
        };
        let escaped = self.path.contains('%');
        let signed = holds_for(self.path) || escaped && holds_for(&percent_decode(self.path));
        if !signed {
            return Err(AuthError::InvalidSignature {
                string_to_sign: signed_text(self.path),
                sent: signature.map(str::to_owned),
            });
        }

        // The signature covers only the claimed digest, so the body itself is checked too. Python
        // claims the digest of the empty body on every GET.
        let digest_holds = match parameters.get("body_md5") {
            Some(claimed) => claimed.eq_ignore_ascii_case(&body_md5(self.body)),
            None => self.body.is_empty(),
        };
        if !digest_holds {
            return Err(AuthError::InvalidBodyMd5);
        }
        Ok(parameters)
    }

    /// The query string with which to send this request: its own query followed by the parameters
    /// of `pusher.md` 5.2.
    pub fn signed_query(&self, now_secs: u64, key: &str, secret: &Secret) -> String {
        let (now_secs, body_md5) = (now_secs.to_string(), body_md5(self.body));
        let mut added = vec![
            ("auth_key", key),
            ("auth_timestamp", &now_secs),
            ("auth_version", "1.0"),
        ];
        if !self.body.is_empty() {
            added.push(("body_md5", &body_md5));
        }
        let parameters = Parameters::parse(self.query, Plus::IsSpace).and(&added);
        let text = parameters.string_to_sign(self.method, self.path);
        let signature = secret.sign(text.as_bytes());
        added.push(("auth_signature", &signature));
        let mut query = self.query.to_owned();
        for (name, value) in added {
            append(&mut query, name, value);
        }
        query
    }
}

/// Each may stand in a query once: which of two counts is not to be guessed.
const AUTH_PARAMETERS: [&str; 5] = [
    "auth_key",
    "auth_timestamp",
    "auth_version",
    "auth_signature",
    "body_md5",
];

fn append(query: &mut String, name: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(name);
    query.push('=');
    query.push_str(&percent_encode(value));
}

fn body_md5(body: &[u8]) -> String {
    hex(&Md5::digest(body))
}

/// The integer at the start of `text`, 0 if there is none: real callers send `1701978133.42`.
fn leading_integer(text: &str) -> i64 {
    let text = text.trim_start();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let digits = digits.bytes().take_while(u8::is_ascii_digit);
    let value = digits.fold(0_i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add((digit - b'0').into())
    });
    sign * value
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_SECS: u64 = 1_353_088_179;
    const AUTH: &str = "auth_key=key&auth_timestamp=1353088179&auth_version=1.0";

    fn secret() -> Secret {
        Secret::new("secret")
    }

    fn get<'a>(path: &'a str, query: &'a str) -> SignedRequest<'a> {
        SignedRequest {
            method: "GET",
            path,
            query,
            body: b"",
        }
    }

    fn verify(request: SignedRequest) -> Result<Parameters, AuthError> {
        let secret = secret();
        request.verify(NOW_SECS, |key| (key == "key").then_some(&secret))
    }

    /// `query` with a signature of `text`.
    fn signed(query: &str, text: &str) -> String {
        let signature = secret().sign(text.as_bytes());
        format!("{query}&auth_signature={signature}")
    }

    #[track_caller]
    fn check_refused(query: &str, text: &str) {
        let error = verify(get("/apps/3/channels", query)).err();
        assert_eq!(
            error.map(|e| e.to_string()).as_deref(),
            Some(text),
            "{query}"
        );
    }

    #[test]
    fn each_check_has_hosteds_text_and_its_place_in_the_order() {
        check_refused("", "Missing parameter: auth_key");
        check_refused("auth_key=other", "Unknown auth_key");
        check_refused("auth_key", "Unknown auth_key");
        check_refused("auth_key=key", "Version required");
        check_refused("auth_key=key&auth_version=1.1", "Version not supported");
        check_refused("auth_key=key&auth_version=1.0", "Timestamp required");
        check_refused(
            "auth_key=key&auth_version=1.0&auth_timestamp=1353087579&auth_signature=bad",
            "Timestamp expired: Given timestamp (2012-11-16T17:39:39Z) not within 600s of server \
             time (2012-11-16T17:49:39Z)",
        );
        check_refused(
            &format!("{AUTH}&auth_signature=bad&body_md5=bad"),
            r#"Invalid signature: you should have sent HmacSHA256Hex("GET\n/apps/3/channels\nauth_key=key&auth_timestamp=1353088179&auth_version=1.0&body_md5=bad", your_secret_key), but you sent "bad""#,
        );
        check_refused(
            AUTH,
            r#"Invalid signature: you should have sent HmacSHA256Hex("GET\n/apps/3/channels\nauth_key=key&auth_timestamp=1353088179&auth_version=1.0", your_secret_key), but you sent nil"#,
        );
        let claimed = format!("{AUTH}&body_md5=bad");
        let text = format!("GET\n/apps/3/channels\n{claimed}");
        check_refused(&signed(&claimed, &text), "Invalid body_md5");
    }

    #[test]
    fn a_repeated_auth_parameter_is_refused_whatever_its_case() {
        for name in AUTH_PARAMETERS {
            let text = format!("Repeated parameter: {name}");
            check_refused(&format!("{name}=1&{name}=1"), &text);
            check_refused(&format!("{name}=1&{}=2", name.to_uppercase()), &text);
        }
    }

    #[test]
    fn the_clocks_may_differ_by_less_than_600_seconds() {
        let query = signed(AUTH, &format!("GET\n/apps/3/channels\n{AUTH}"));
        let secret = secret();
        let request = get("/apps/3/channels", &query);
        let verify_at = |now_secs| request.verify(now_secs, |_| Some(&secret));
        for offset in [0, 1, 599] {
            assert!(verify_at(1_353_088_179 - offset).is_ok(), "{offset}");
            assert!(verify_at(1_353_088_179 + offset).is_ok(), "{offset}");
        }
        for now_secs in [1_353_088_179 - 600, 1_353_088_179 + 600, 0, u64::MAX] {
            let error = verify_at(now_secs).err();
            let expired = matches!(error, Some(AuthError::TimestampExpired { .. }));
            assert!(expired, "{now_secs}: {error:?}");
        }
    }

    #[test]
    fn a_timestamp_counts_as_its_leading_integer() {
        for (text, value) in [
            ("1353088179", 1_353_088_179),
            ("1353088179.42", 1_353_088_179),
            (" 12", 12),
            ("-5", -5),
            ("", 0),
            ("soon", 0),
            ("99999999999999999999999", i64::MAX),
            ("-99999999999999999999999", -i64::MAX),
        ] {
            assert_eq!(leading_integer(text), value, "{text:?}");
        }
        let query = AUTH.replace("179", "179.42");
        let text = format!("GET\n/apps/3/channels\n{query}");
        assert!(verify(get("/apps/3/channels", &signed(&query, &text))).is_ok());
    }

    #[test]
    fn a_path_escaped_in_transit_is_tried_as_sent_and_then_decoded() {
        let path = "/apps/3/channels/a%3Bb";
        for signed_path in [path, "/apps/3/channels/a;b"] {
            let query = signed(AUTH, &format!("GET\n{signed_path}\n{AUTH}"));
            assert!(verify(get(path, &query)).is_ok(), "{signed_path}");
        }
        let query = signed(AUTH, &format!("GET\n{path}\n{AUTH}"));
        assert!(verify(get("/apps/3/channels/a;b", &query)).is_err());
    }

    #[test]
    fn a_plus_is_read_as_it_was_signed() {
        for value in ["a b", "a+b"] {
            let query = signed(
                &format!("{AUTH}&x=a+b"),
                &format!("GET\n/\n{AUTH}&x={value}"),
            );
            let parameters = verify(get("/", &query)).ok().unwrap();
            assert_eq!(parameters.get("x"), Some(value));
        }
        let query = format!("{AUTH}&x=a+b&auth_signature=bad");
        let error = verify(get("/", &query)).err().unwrap();
        assert!(error.to_string().contains("x=a b"), "{error}");
    }

    #[test]
    fn every_parameter_is_signed_sorted_and_decoded_once() {
        let query = format!("b[]=2&A=%25%32%35&{AUTH}&b1=x&b[]=1&z&&ключ=%D0%B6%26y%3D1");
        let text = format!("GET\n/\na=%25&{AUTH}&b[]=2&b[]=1&b1=x&z=&ключ=ж&y=1");
        let query = signed(&query, &text);
        let parameters = verify(get("/", &query)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(parameters.get("a"), Some("%25"));
        assert_eq!(parameters.get("A"), None);
        assert_eq!(parameters.get("z"), Some(""));
        assert_eq!(parameters.get("ключ"), Some("ж&y=1"));
        assert_eq!(parameters.all("b[]").collect::<Vec<_>>(), ["2", "1"]);
    }

    #[test]
    fn the_method_is_part_of_the_signature() {
        let query = signed(AUTH, &format!("GET\n/\n{AUTH}"));
        let request = get("/", &query);
        assert!(
            verify(SignedRequest {
                method: "get",
                ..request
            })
            .is_ok()
        );
        assert!(
            verify(SignedRequest {
                method: "POST",
                ..request
            })
            .is_err()
        );
    }

    #[test]
    fn what_we_sign_we_accept() {
        for (query, body) in [
            ("", ""),
            ("", "{}"),
            ("info=user_count%2Cx&q=a%20b%2B", "é"),
        ] {
            let request = SignedRequest {
                method: "POST",
                path: "/apps/3/events",
                query,
                body: body.as_bytes(),
            };
            let query = request.signed_query(NOW_SECS, "key", &secret());
            let sent = SignedRequest {
                query: &query,
                ..request
            };
            assert!(verify(sent).is_ok(), "{query}");
        }
    }
}
