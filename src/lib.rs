//! Raptor: hosted Pusher Channels and Faye (Bayeux) from one binary, on one set of channels.
//!
//! # The rooms, from the nouns up
//!
//! | room | purpose |
//! |---|---|
//! | [`model`] | the nouns: ids, channel names and kinds, events, members, facts |
//! | [`wire`] | text ↔ typed message, for each wire format; pure |
//! | [`auth`] | sign and verify, in constant time |
//! | [`apps`] | the applications: keys, switches, limits |
//! | [`audit`] | who did what, line by line |
//! | [`metrics`] | what is counted, and how it is printed for Prometheus |
//! | [`rate`] | how often something may be done |
//! | [`hub`] | who is subscribed on this node; hands events over to their outboxes |
//! | [`transport`] | how bytes reach peers: the WebSocket loop, sessions that outlive a connection, bits of HTTP |
//! | [`backend`] | makes the hubs of all nodes one; the seam is one trait |
//! | [`broker`] | the walks that all front ends share: subscribe, leave, publish, sign in |
//! | [`peers`] | sessions on other nodes: whose they are, requests passed on to them, how they move |
//! | [`pusher`] | front end: `/app/:key` |
//! | [`bayeux`] | front end: what Faye and CometD clients speak |
//! | [`rest`] | front end: the signed HTTP API, `/apps/:id/…` |
//! | [`webhooks`] | tells applications what happened: damping, batches, retries, the log of it |
//! | [`config`] | what the user wrote → a valid `Config` |
//! | [`server`] | assembly: build everything, the URL table, listen, drain |
//! | [`bench`] | loads a server, this one or another, and says what it did and what it cost |
//!
//! Dependencies point up this table only, from a room to rooms above it; the front ends do not
//! know each other.
//!
//! # Where to look
//!
//! A rule of the Pusher protocol is in `pusher/` if it is about what a client may do (with every
//! close code in `pusher/close.rs`), in `wire/pusher.rs` if it is about how something is written,
//! in `rest/` if it is about the HTTP API. A rule of Bayeux is in `bayeux/`, in the file of its meta
//! channel or transport, or in `wire/bayeux/`; how its channel names map to Pusher's is
//! `bayeux/mapping.rs` alone. Comments cite the specification by section (`pusher.md 2.3`), and `COMPATIBILITY.md` names the test of each rule.
//!
//! # Invariants
//!
//! - `wire` does no IO. Nothing in `hub` is serialisable.
//! - Only a backend calls [`hub::Hub::deliver`]; it alone knows the order of joins and leaves, so
//!   it states the facts of both.
//! - Everything that a peer receives passes its [`hub::Outbox`], which is bounded in bytes and
//!   never makes a publisher wait.
//! - Deliveries to one channel take turns, so that its subscribers see one order. No lock on data
//!   is held across an await or while anything is encoded or written.
//! - A subscriber receives nothing of a channel before its acknowledgement, and misses nothing
//!   after it.
//! - Dropping a connection is the one way in which it leaves.
//!
//! # Where this departs from the plan
//!
//! - [`broker`] is a room of its own: subscribing, leaving and signing in are walks through
//!   backend and hub that both front ends need, and they should stand once.
//! - [`transport`] holds the socket loop, which is the same for both protocols; what messages mean
//!   is behind one trait, [`transport::websocket::Conversation`].
//! - `Backend::join` adds to the hub itself, instead of asking for it before and after: the order
//!   of "who was first" is decided where the subscriber becomes visible.
//! - Sockets are not written to by their own tasks but by few tasks that write to one after the
//!   other ([`transport::writer`]): while they are on their round, what is published gathers, and
//!   the busier the server, the more frames go out with one system call. While the node is quiet,
//!   nothing would gather, and whoever delivers also writes (`hub/pace.rs`).
//! - WebSocket frames are read and written by [`wire::websocket`], not by a library: an idle
//!   connection needs no buffer, and writing needs no owner of the whole stream.
//! - A session does not move with every request that another node gets, but the request is passed on
//!   to its node ([`peers`]): behind a load balancer that takes turns, moving would cost each poll a
//!   leave and a join of every channel. It moves where a socket or a node that stops makes it worth it.
//! - A user's sign-ins, and who watches them, are channels that no client can name. Online state,
//!   watchlists and terminating a user need nothing beyond what channels can do, on any backend.

#![forbid(unsafe_code)]

pub mod bench;

pub mod config;
pub mod server;

pub mod bayeux;
pub mod pusher;
pub mod rest;
pub mod webhooks;

pub mod peers;

pub mod broker;

pub mod backend;

pub mod transport;

pub mod hub;

pub mod apps;
pub mod audit;
pub mod auth;
pub mod metrics;
pub mod rate;
pub mod wire;

pub mod model;
