//! Who did what: lines for those who must be able to show it later. Never a payload.
//!
//! The lines are events of `tracing` under a target of their own, which the program writes to
//! where `audit_log` says; without it they cost a comparison.

use std::net::IpAddr;

use crate::model::{AppId, SocketId};

pub const TARGET: &str = "raptor::audit";

/// A request of an application that was accepted, or why it was not.
pub struct Caller<'c> {
    pub app: &'c AppId,
    pub key: &'c str,
    pub address: Option<IpAddr>,
}

impl Caller<'_> {
    pub fn published(&self, event: &str, channels: &[&str]) {
        let (app, key) = (self.app.as_str(), self.key);
        let address = self.address.map(tracing::field::display);
        let channels = channels.join(" ");
        tracing::info!(target: TARGET, action = "publish", app, key, address, event, channels);
    }

    pub fn terminated(&self, user: &str) {
        let (app, key) = (self.app.as_str(), self.key);
        let address = self.address.map(tracing::field::display);
        tracing::info!(target: TARGET, action = "terminate", app, key, address, user);
    }

    pub fn refused(&self, why: &str) {
        let (app, key) = (self.app.as_str(), self.key);
        let address = self.address.map(tracing::field::display);
        tracing::info!(target: TARGET, action = "refuse", app, key, address, why);
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

    /// `channels`: what it asked for, separated by spaces.
    pub fn refused(&self, channels: &str, why: &str) {
        let app = self.app.as_str();
        let socket_id = self.socket_id.map(tracing::field::display);
        let address = self.address.map(tracing::field::display);
        tracing::info!(target: TARGET, action = "refuse", app, socket_id, address, channels, why);
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

/// A signature for a private channel or a sign-in was wrong.
pub fn signature_refused(app: &AppId, socket_id: SocketId, key: &str) {
    let app = app.as_str();
    tracing::info!(target: TARGET, action = "refuse", app, %socket_id, key, why = "signature");
}

/// The server started, stopped, took a new configuration or refused one.
pub fn server(action: &'static str) {
    tracing::info!(target: TARGET, action);
}
