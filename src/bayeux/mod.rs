//! The Bayeux front end (`bayeux.md`). So far its rules, which know no sockets and no clock:
//! [`channel`] says what a name is, [`mapping`] which channel it is, [`check`] whether a message
//! is in order.

pub mod channel;
pub mod check;
pub mod mapping;
#[cfg(test)]
mod transcripts;
