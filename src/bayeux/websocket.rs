//! Bayeux over a WebSocket (`bayeux.md` 3.6). Replies go out first; the events of a session come from
//! the session's queue, from the last `/meta/connect` on this socket until the session goes elsewhere
//! or ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use warp::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use warp::reply::Response;

use super::client::Client;
use super::connect::{Connecting, Waiting};
use super::encoding::message_of;
use super::exchange::{Answers, Sender};
use super::http::Request;
use super::site::Site;
use crate::hub::{Closing, Frame};
use crate::metrics::Limit;
use crate::rate::Rate;
use crate::transport::session::{Carrier, Parted, Vehicle};
use crate::transport::websocket::{Close, Conversation, Upgrade};
use crate::transport::writer::{Encoded, Source};
use crate::wire::bayeux::{join, parse};

/// Faye passes over what it cannot read; who sends nothing else is no Bayeux client.
const UNREADABLE_MAX: u32 = 10;
/// A queue with room for more gives it back.
const KEPT_REPLIES_MAX: usize = 16;
const LIMIT: Limit = Limit::ControlMessages;

pub fn answer(request: Request) -> Response {
    let Request {
        site,
        mut parts,
        peer,
        ..
    } = request;
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let headers = &parts.headers;
    let sender = Sender {
        address: peer.address,
        headers: site.shown(headers),
    };
    let mut upgrade = match Upgrade::accept(headers, on_upgrade) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    // A browser that offered some fails where none is chosen.
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.and_then(|offered| offered.to_str().ok()?.split(',').next());
    if let Some(first) = offered.and_then(|first| HeaderValue::from_str(first.trim()).ok()) {
        let headers = upgrade.response.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, first);
    }
    let settings = site.websocket.clone();
    upgrade.serve(settings, move || {
        let per_sec = site.control_messages_per_sec_max();
        Ok(Socket {
            outgoing: Arc::new(Outgoing {
                site,
                line: Mutex::default(),
            }),
            sender,
            unreadable: 0,
            control_messages: Rate::per_sec(per_sec),
        })
    })
}

struct Socket {
    outgoing: Arc<Outgoing>,
    sender: Sender,
    /// How many messages in all could not be read.
    unreadable: u32,
    control_messages: Rate,
}

/// What a socket sends: replies, and the events of the session that it carries.
struct Outgoing {
    site: Arc<Site>,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// Written soon behind what they answer; while the peer does not take them nothing is read that
    /// would bring more.
    replies: VecDeque<Frame>,
    bound: Option<Bound>,
    /// How to close, once the replies are written. Boxed, as the connect that is held: what each
    /// event needs of a socket is two cache lines.
    close: Option<Box<Close>>,
}

/// The session whose events this socket carries.
struct Bound {
    carrier: Carrier<Client>,
    /// The client acknowledges what it receives: events travel behind connect replies alone.
    acknowledges: bool,
    held: Option<Box<Held>>,
}

/// A connect that waits, and until when.
struct Held {
    waiting: Waiting,
    due: Instant,
}

impl Outgoing {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds the session of the connect, in place of any other, and holds the connect.
    fn connect(&self, connecting: Connecting) {
        let Connecting {
            session,
            held: waiting,
            hold,
        } = connecting;
        let mut line = self.line();
        let is_bound = (line.bound.as_ref()).is_some_and(|bound| bound.carries(&session.id));
        if let Some(before) = line.bound.as_mut().and_then(|bound| bound.held.take()) {
            line.reply([self.site.parting(&before.waiting, Parted::Superseded)]);
        }
        if !is_bound {
            let carrier = session.attach(Vehicle::Socket);
            line.bound = Some(Bound {
                acknowledges: carrier.session.client.unacknowledged.is_some(),
                carrier,
                held: None,
            });
        }
        if let Some(bound) = &mut line.bound {
            let due = Instant::now() + hold;
            bound.held = Some(Box::new(Held { waiting, due }));
        }
        if hold.is_zero() || session.client.has_lost() {
            self.answer_held(&mut line, VecDeque::new());
        }
    }

    /// On sockets time answers a connect. Events do so only where they have to be acknowledged, and
    /// travel behind the reply.
    fn answer_held(&self, line: &mut Line, events: VecDeque<Frame>) {
        let Some(bound) = &mut line.bound else { return };
        if let Some(held) = bound.held.take() {
            let advice = self.site.advice();
            let (carrier, waiting) = (&bound.carrier, &held.waiting);
            let (reply, events) = self.site.accepted(carrier, waiting, &advice, events);
            let messages = [reply.as_str()].into_iter();
            line.reply(messages.chain(events.iter().map(message_of)));
        }
    }

    /// The session takes nothing more from here. It was the socket's only use, unless the client
    /// has another connection for it.
    fn part(&self, line: &mut Line, parted: Parted) {
        let bound = line.bound.take();
        if let Some(held) = bound.and_then(|bound| bound.held) {
            line.reply([self.site.parting(&held.waiting, parted)]);
        }
        if parted != Parted::Superseded {
            line.close = Some(Box::new(close_after(parted)));
        }
    }
}

fn close_after(parted: Parted) -> Close {
    match parted {
        Parted::Superseded | Parted::Ended | Parted::Closed(Closing::Terminated) => {
            Close::plain(1000, "")
        }
        Parted::Moved | Parted::Closed(Closing::Draining | Closing::Restarting) => {
            Close::plain(1001, "")
        }
        Parted::Closed(Closing::Slow) => Close::plain(1008, "Too slow"),
    }
}

impl Line {
    fn reply<M: AsRef<str>>(&mut self, messages: impl IntoIterator<Item = M>) {
        self.replies.push_back(Frame::from(join(messages)));
    }
}

impl Bound {
    fn carries(&self, session_id: &str) -> bool {
        *self.carrier.session.id == *session_id && self.carrier.is_newest()
    }
}

impl Conversation for Socket {
    type Source = Arc<Outgoing>;

    fn source(&self) -> Arc<Outgoing> {
        self.outgoing.clone()
    }

    const READS_BINARY: bool = true;

    async fn on_text(&mut self, text: &str) -> Result<(), Close> {
        let site = self.outgoing.site.newest();
        let messages_max = site.settings.limits.messages_per_request_max;
        let Ok(messages) = parse(text, messages_max) else {
            self.unreadable += 1;
            return match self.unreadable < UNREADABLE_MAX {
                true => Ok(()),
                false => Err(Close::plain(1008, "No Bayeux messages")),
            };
        };
        // Clients come again on a new socket, with the same session.
        let visits = site.bring(&messages).await;
        let visits = visits.ok_or_else(|| Close::plain(1013, "Try again later"))?;
        let Answers {
            replies,
            connects,
            control_messages,
            ..
        } = site.answer(&messages, &self.sender).await;
        drop(visits);
        // Older clients send an empty array now and then, and have it answered.
        if !replies.is_empty() || messages.is_empty() {
            self.outgoing.line().reply(replies);
        }
        for connecting in connects {
            self.outgoing.connect(connecting);
        }
        (self.control_messages).change(site.control_messages_per_sec_max());
        self.control_messages.pace(control_messages, LIMIT).await;
        Ok(())
    }

    async fn on_ping(&mut self) {
        self.control_messages.pace(1, LIMIT).await;
    }

    fn deadline(&self) -> Option<Instant> {
        let line = self.outgoing.line();
        let held = line.bound.as_ref()?.held.as_ref();
        held.map(|held| held.due)
    }

    fn on_deadline(&mut self) -> Result<(), Close> {
        let mut line = self.outgoing.line();
        self.outgoing.answer_held(&mut line, VecDeque::new());
        Ok(())
    }

    fn on_silence(&self) -> Close {
        Close::plain(1001, "No answer to a ping")
    }
}

impl Source for Arc<Outgoing> {
    fn poll_encode(
        &mut self,
        cx: &mut Context<'_>,
        encoded: &mut Encoded,
    ) -> Poll<Result<(), Close>> {
        let line = &mut *self.line();
        loop {
            if !line.replies.is_empty() {
                encoded.push_some(&mut line.replies);
                line.replies.shrink_to(KEPT_REPLIES_MAX);
                return Poll::Ready(Ok(()));
            }
            if let Some(close) = line.close.take() {
                return Poll::Ready(Err(*close));
            }
            let Some(bound) = &line.bound else {
                return Poll::Pending;
            };
            if !bound.acknowledges {
                let taken = bound.carrier.poll_next(cx, |event| encoded.push(event));
                match ready!(taken) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(parted) => self.part(line, parted),
                }
            } else if bound.held.is_some() {
                let mut events = VecDeque::new();
                match ready!(bound.carrier.poll_take(cx, &mut events)) {
                    Ok(()) => self.answer_held(line, events),
                    Err(parted) => self.part(line, parted),
                }
            } else {
                let parted = ready!(bound.carrier.poll_parted(cx));
                self.part(line, parted);
            }
        }
    }

    fn on_blocked(&self) {
        if let Some(bound) = &self.line().bound {
            bound.carrier.blocked();
        }
    }

    fn poll_abandon(&self, cx: &mut Context<'_>) -> Poll<Close> {
        let line = self.line();
        let Some(bound) = &line.bound else {
            return Poll::Pending;
        };
        bound.carrier.poll_parted(cx).map(close_after)
    }
}
