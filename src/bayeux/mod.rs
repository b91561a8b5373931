//! The Bayeux front end (`bayeux.md`). So far its rules, which know no sockets and no clock:
//! [`channel`] says what a name is, [`mapping`] which channel it is, [`check`] whether a message
//! is in order, [`authorise`] and [`jwt`] whether its sender has the proof that an app asks for.

pub mod authorise;
pub mod channel;
pub mod check;
pub mod jwt;
pub mod mapping;
#[cfg(test)]
mod transcripts;
