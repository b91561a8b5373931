//! `[redis]`: what makes several nodes one.

use std::fs;

use super::section::Section;
use super::written::{Sited, Written};
use crate::backend::redis::{Certificates, Settings};

const MEND: &str = "write it as \"redis://user:password@host:6379/0\"; rediss:// is with TLS, and \
                    redis-sentinel://, redis-cluster:// and unix:// are understood too";

/// `None` for a node that is alone.
pub(super) fn settings(root: &mut Section, written: &Written) -> Option<Settings> {
    root.table("redis", "[redis]", |table| {
        let in_file = table.text("url");
        let prefix = key_prefix(table);
        let authority = pem(table, "ca_certificate");
        let certificate = table.text("client_certificate");
        let key = table.text("client_key");
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => read(table, &certificate).zip(read(table, &key)),
            (None, None) => None,
            (Some(alone), None) | (None, Some(alone)) => {
                let what = "a client certificate and its key go together";
                let mend = "write both client_certificate and client_key";
                table.reading.note(&alone.site, what, mend);
                None
            }
        };
        let timeout = table.duration_ms("command_timeout_ms", 100..=60_000);
        let url = written.redis.clone().or(in_file)?;
        let mut settings = match Settings::parse(&url.value) {
            Ok(settings) => settings,
            Err(what) => {
                table.reading.note(&url.site, what, MEND);
                return None;
            }
        };
        let certificates = Certificates { authority, client };
        if certificates != Certificates::default() && !settings.is_tls() {
            let what = "certificates are for a connection with TLS";
            table.reading.note(
                &url.site,
                what,
                "write the URL with rediss instead of redis",
            );
        }
        settings.certificates = certificates;
        settings.key_prefix = prefix.unwrap_or(settings.key_prefix);
        settings.command_timeout = timeout.unwrap_or(settings.command_timeout);
        Some(settings)
    })
}

fn key_prefix(table: &mut Section) -> Option<String> {
    let prefix = table.text("key_prefix")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    let is_good = !prefix.value.is_empty() && prefix.value.bytes().all(allowed);
    if !is_good {
        let what = format!("{:?} cannot be what keys start with", prefix.value);
        let mend = "use letters, digits and - _ . : /";
        table.reading.note(&prefix.site, what, mend);
    }
    is_good.then_some(prefix.value)
}

fn pem(table: &mut Section, key: &'static str) -> Option<Vec<u8>> {
    let path = table.text(key)?;
    read(table, &path)
}

fn read(table: &Section, path: &Sited<String>) -> Option<Vec<u8>> {
    match fs::read(&path.value) {
        Ok(text) => Some(text),
        Err(error) => {
            let what = format!("{} cannot be read: {error}", path.value);
            table.reading.note(&path.site, what, "name a PEM file");
            None
        }
    }
}
