//! Who did what: lines for those who must be able to show it later. Never a payload.
//!
//! The lines are events of `tracing` under a target of their own, which the program writes to
//! where `audit_log` says; without it they cost a comparison.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::{AppId, ChannelName, SocketId, now_ms};

pub const TARGET: &str = "raptor::audit";

/// Of channels that somebody made up.
const CHANNELS_CHARS_MAX: usize = 1_000;
/// How many refusals are listed.
const REFUSALS_PER_SEC_MAX: u32 = 100;

/// A request of an application that was accepted.
pub struct Caller<'c> {
    pub app: &'c AppId,
    pub key: &'c str,
    pub address: IpAddr,
}

impl Caller<'_> {
    pub fn published(&self, event: &str, channels: &[ChannelName]) {
        let (app, key, address) = (self.app.as_str(), self.key, self.address);
        // Only made where there is an audit log.
        let names = || channels.iter().map(ChannelName::as_str).collect::<Vec<_>>();
        tracing::info!(target: TARGET, action = "publish", app, key, %address, event, channels = names().join(" "));
    }

    pub fn terminated(&self, user: &str) {
        let (app, key, address) = (self.app.as_str(), self.key, self.address);
        tracing::info!(target: TARGET, action = "terminate", app, key, %address, user);
    }
}

/// Whoever is refused before it is a client, as far as it is known. A key is named only if there is
/// one of that name: people paste secrets in its place.
#[derive(Clone, Copy, Default)]
pub struct Stranger<'s> {
    pub app: Option<&'s AppId>,
    pub key: Option<&'s str>,
    pub address: Option<IpAddr>,
}

impl Stranger<'_> {
    pub fn refused(&self, why: &str) {
        if REFUSALS.may_be_written() {
            let (app, key) = (self.app.map(AppId::as_str), self.key);
            let address = self.address.map(tracing::field::display);
            tracing::info!(target: TARGET, action = "refuse", app, key, address, why);
        }
    }
}

/// A client of either protocol, as far as it is known: by its connection or session, and by its
/// address where the line of its connection may not be there.
#[derive(Clone, Copy)]
pub struct Client<'c> {
    pub app: &'c AppId,
    pub socket_id: Option<SocketId>,
    pub address: Option<IpAddr>,
}

impl Client<'_> {
    /// `by_application`: with a token that only the application has.
    pub fn published(&self, event: &str, channels: &str, by_application: bool) {
        let app = self.app.as_str();
        let socket_id = self.socket_id.map(tracing::field::display);
        let address = self.address.map(tracing::field::display);
        let by = match by_application {
            true => "application",
            false => "client",
        };
        tracing::info!(target: TARGET, action = "publish", app, socket_id, address, event, channels, by);
    }

    /// `key`: one of the app that it signed with. `channels`: what it asked for, separated by spaces.
    pub fn refused(&self, key: Option<&str>, channels: Option<&str>, why: &str) {
        if !REFUSALS.may_be_written() {
            return;
        }
        let channels = channels.map(|channels| {
            let cut = channels.char_indices().nth(CHANNELS_CHARS_MAX);
            &channels[..cut.map_or(channels.len(), |(at, _)| at)]
        });
        let app = self.app.as_str();
        let socket_id = self.socket_id.map(tracing::field::display);
        let address = self.address.map(tracing::field::display);
        tracing::info!(target: TARGET, action = "refuse", app, key, socket_id, address, channels, why);
    }
}

pub fn connected(app: &AppId, socket_id: SocketId, address: IpAddr) {
    let app = app.as_str();
    tracing::info!(target: TARGET, action = "connect", app, %socket_id, %address);
}

pub fn signed_in(app: &AppId, socket_id: SocketId, user: &str) {
    let app = app.as_str();
    tracing::info!(target: TARGET, action = "sign_in", app, %socket_id, user);
}

/// The server started, stopped, took a new configuration or refused one.
pub fn server(action: &'static str) {
    REFUSALS.lock().write_rest();
    tracing::info!(target: TARGET, action);
}

/// Bounds the lines about refusals: who is refused can come as often as it likes, and would fill
/// the disk.
struct Refusals(Mutex<Written>);

struct Written {
    /// Since 1970.
    sec: u64,
    lines: u32,
    left_out: u64,
}

static REFUSALS: Refusals = Refusals(Mutex::new(Written {
    sec: 0,
    lines: 0,
    left_out: 0,
}));

impl Refusals {
    fn may_be_written(&self) -> bool {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return false;
        }
        let sec = now_ms() / 1_000;
        let mut written = self.lock();
        if written.sec != sec {
            written.write_rest();
            (written.sec, written.lines) = (sec, 0);
        }
        let has_room = written.lines < REFUSALS_PER_SEC_MAX;
        match has_room {
            true => written.lines += 1,
            false => written.left_out += 1,
        }
        has_room
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    fn write_rest(&mut self) {
        let times = std::mem::take(&mut self.left_out);
        if times > 0 {
            let why = "more than are listed";
            tracing::info!(target: TARGET, action = "refuse", why, times);
        }
    }
}
