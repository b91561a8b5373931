//! Requests that are passed on to the node that has their session, and the answers that come back.
//!
//! ```text
//!   client      node that was asked           owner
//!     │ request        │ ─── Request ───────────► │ answers it as if it had come here
//!     │                │ ◄── Answer, Part … End ─ │ one part after another
//!     │ ◄───────────── │                          │
//!     │                │ ─── Written ───────────► │ only then is the part with the client
//! ```
//!
//! If the client goes away, or one of the two nodes does, what was not written goes back to the
//! session.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use tokio::time::sleep;
use warp::http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use warp::http::{HeaderMap, Method, Request, StatusCode};
use warp::reply::{Reply, Response};

use super::exchange::{Asked, Exchange};
use super::letter::{AnswerHead, RequestHead, What};
use super::{HouseName, Peers};
use crate::transport::http::text;
use crate::transport::peer::Peer;
use crate::transport::receipt::Receipts;

/// How often a request is passed on whose session is not found where it should be.
const TRIES_MAX: u32 = 8;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(25);
/// How long the owner waits to hear that a part was written, or cannot be: longer than whoever
/// writes it tries.
const WRITTEN_WITHIN: Duration = Duration::from_secs(20);

/// Answers a request that another node passed on.
pub type Serve = Box<
    dyn Fn(Request<Full<Bytes>>, Peer, &Receipts) -> Pin<Box<dyn Future<Output = Response> + Send>>
        + Send
        + Sync,
>;

/// In the extensions of a request that was passed on. It is not passed on again: the first node
/// looks anew where its session is.
#[derive(Clone, Copy, Debug)]
pub struct PassedOn;

/// What is left to a request whose session moves while it is on its way to it.
#[derive(Default)]
pub struct Tries(u32);

impl Tries {
    /// Whether there is one more; a little later each time.
    pub async fn one_more(&mut self) -> bool {
        sleep(TRY_AGAIN_AFTER * self.0).await;
        self.0 += 1;
        self.0 <= TRIES_MAX
    }
}

/// A request to be passed on, whole.
pub struct Relayed<'r> {
    /// Whose session it is for.
    pub house: HouseName,
    pub id: String,
    pub method: &'r Method,
    /// The path, and the query if there is one.
    pub target: String,
    pub headers: &'r HeaderMap,
    pub body: &'r [u8],
    pub peer: Peer,
    pub receipts: &'r Receipts,
}

/// For whom no other node can answer just now. Clients come again.
pub fn unavailable() -> Response {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "Try again");
    let at_once = HeaderValue::from_static("1");
    response.headers_mut().insert(RETRY_AFTER, at_once);
    response
}

/// For a request that was passed on, and should have been to another node.
pub fn misdirected() -> Response {
    text(StatusCode::MISDIRECTED_REQUEST, "")
}

impl Peers {
    /// Has a request answered by another node. `None` if its session is not there: nothing was done.
    pub async fn relay(self: &Arc<Self>, to: u32, request: Relayed<'_>) -> Option<Response> {
        let head = RequestHead {
            method: request.method.as_str().to_owned(),
            target: request.target,
            headers: written(request.headers),
            address: request.peer.address,
            is_secure: request.peer.secure,
            is_certified: request.peer.certified,
        };
        let mut asking = Asking {
            exchange: self.exchanges.ask(Asked {
                node: to,
                house: request.house,
                id: request.id,
            }),
            peers: self.clone(),
            is_done: false,
        };
        let number = asking.exchange.number();
        let is_there = self
            .post(to, number, What::Request(head), request.body)
            .await;
        if !is_there {
            asking.is_done = true;
            return None;
        }
        self.counts.passed_on.fetch_add(1, Ordering::Relaxed);
        match asking.exchange.next().await {
            Some((What::Answer(head), first)) => Some(asking.answer(head, first, request.receipts)),
            Some((What::NotHere, _)) => {
                asking.is_done = true;
                None
            }
            // Whether it was done nobody knows.
            _ => Some(unavailable()),
        }
    }

    /// Answers a request that another node passed on.
    pub(super) async fn serve_passed_on(
        self: &Arc<Self>,
        mut exchange: Exchange,
        head: RequestHead,
        body: Bytes,
    ) {
        let receipts = Receipts::default();
        let peer = Peer {
            address: head.address,
            secure: head.is_secure,
            certified: head.is_certified,
        };
        let (Some(serve), Some(request)) = (self.serve.get(), request_of(head, body)) else {
            return;
        };
        // Nothing comes before the answer but that it is not wanted any more.
        let response = tokio::select! {
            response = serve(request, peer, &receipts) => response,
            _ = exchange.next() => return,
        };
        if response.status() == StatusCode::MISDIRECTED_REQUEST {
            let (to, number) = (exchange.with(), exchange.number());
            self.post(to, number, What::NotHere, &[]).await;
            return;
        }
        let (to, number) = (exchange.with(), exchange.number());
        if self
            .send_answer(&mut exchange, response, &receipts)
            .await
            .is_none()
        {
            receipts.lost();
            self.post(to, number, What::BrokenOff, &[]).await;
        }
    }

    /// `None` if it is not wanted any more, or there is nobody to write it.
    async fn send_answer(
        &self,
        exchange: &mut Exchange,
        response: Response,
        receipts: &Receipts,
    ) -> Option<()> {
        let (to, number) = (exchange.with(), exchange.number());
        let (head, mut body) = response.into_parts();
        let mut first = next_part(&mut body, exchange).await?;
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        let is_all = first.as_ref().map(Bytes::len) == length;
        let mut is_whole = is_all || body.is_end_stream() || first.is_none();
        let mut what = What::Answer(AnswerHead {
            status: head.status.as_u16(),
            headers: written(&head.headers),
            is_whole,
            wants_receipt: receipts.are_any(),
        });
        loop {
            let wants_receipt = receipts.are_any();
            if !receipts.send_away() {
                return None;
            }
            let part = first.take().unwrap_or_default();
            if !self.post(to, number, what, &part).await {
                return None;
            }
            if wants_receipt {
                match exchange.next_within(WRITTEN_WITHIN).await {
                    Some((What::Written, _)) => receipts.written_away(),
                    _ => return None,
                }
            }
            if is_whole {
                return Some(());
            }
            first = next_part(&mut body, exchange).await?;
            is_whole = first.is_none();
            what = match is_whole {
                true => What::End,
                false => What::Part {
                    wants_receipt: receipts.are_any(),
                },
            };
        }
    }
}

/// `None` if it is not wanted any more; then `None` at the end of the body.
async fn next_part(
    body: &mut (impl hyper::body::Body<Data = Bytes, Error: std::fmt::Debug> + Unpin),
    exchange: &mut Exchange,
) -> Option<Option<Bytes>> {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = exchange.next() => return None,
        };
        match frame {
            None => return Some(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(part) => return Some(Some(part)),
                Err(_) => continue,
            },
            Some(Err(_)) => return None,
        }
    }
}

/// A request that another node answers.
struct Asking {
    exchange: Exchange,
    peers: Arc<Peers>,
    /// The other node expects nothing more.
    is_done: bool,
}

impl Asking {
    fn answer(mut self, head: AnswerHead, first: Bytes, receipts: &Receipts) -> Response {
        let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut response = match head.is_whole && !head.wants_receipt {
            true => {
                self.is_done = true;
                Response::new(first.into())
            }
            false => self.stream(first, head.is_whole, head.wants_receipt, receipts.clone()),
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in head.headers {
            let name = HeaderName::try_from(name);
            let value = HeaderValue::try_from(value);
            if let (Ok(name), Ok(value)) = (name, value)
                && name != TRANSFER_ENCODING
                && (name != CONTENT_LENGTH || head.is_whole)
            {
                headers.append(name, value);
            }
        }
        response
    }

    fn stream(
        self,
        first: Bytes,
        is_whole: bool,
        wants_receipt: bool,
        receipts: Receipts,
    ) -> Response {
        let mut first = Some((first, wants_receipt));
        let mut is_whole = is_whole;
        let asked = Arc::new(std::sync::Mutex::new(self));
        let body = stream::poll_fn(move |cx| {
            let part = match first.take() {
                Some(part) => Some(part),
                None if is_whole => None,
                None => {
                    let mut asked = lock(&asked);
                    match std::task::ready!(asked.exchange.poll_next(cx)) {
                        Some((What::Part { wants_receipt }, part)) => Some((part, wants_receipt)),
                        Some((What::End, _)) => {
                            asked.is_done = true;
                            None
                        }
                        // An end that is none: the client has to see that.
                        _ => return Poll::Ready(Some(Err(BrokenOff))),
                    }
                }
            };
            let Some((part, wants_receipt)) = part else {
                is_whole = true;
                return Poll::Ready(None);
            };
            if wants_receipt {
                let asked = asked.clone();
                let is_last = is_whole;
                receipts.when_written(move || {
                    let mut asked = lock(&asked);
                    asked.is_done = is_last;
                    asked.say(What::Written);
                });
            }
            Poll::Ready(Some(Ok(part)))
        });
        warp::reply::stream(body).into_response()
    }

    /// Without waiting: whoever writes has a lock.
    fn say(&self, what: What) {
        let peers = self.peers.clone();
        let (to, number) = (self.exchange.with(), self.exchange.number());
        let tasks = &self.peers.tasks;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            tasks.spawn_on(
                async move { peers.post(to, number, what, &[]).await },
                &runtime,
            );
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_done {
            self.say(What::GivenUp);
        }
    }
}

/// The other node has gone in the middle of an answer.
#[derive(Debug)]
struct BrokenOff;

impl std::error::Error for BrokenOff {}

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the node that has the session has gone")
    }
}

fn request_of(head: RequestHead, body: Bytes) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(head.method.as_str())
        .uri(head.target);
    for (name, value) in head.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(body)).ok()
}

/// Those that are text, as all are that anybody reads.
fn written(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(text).collect()
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
