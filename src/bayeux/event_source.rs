//! Bayeux over an event stream (`bayeux.md` 3.7): events come down an HTTP answer without end, the
//! client's own messages go up by POST.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Interval, interval};
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};

use super::client::Client;
use super::http::Request;
use crate::hub::Frame;
use crate::peers::Tries;
use crate::transport::receipt::Receipts;
use crate::transport::session::{Carrier, Parted, Vehicle};
use crate::wire::bayeux::http::stream_event;

/// Tells the browser when to open the stream anew.
const RETRY: &str = "retry: 5000\r\n\r\n";
/// The same where all is well, but the session has moved.
const RETRY_SOON: &str = "retry: 100\r\n\r\n";
const COMMENT: &str = ":\r\n\r\n";
const COMMENT_EVERY: Duration = Duration::from_secs(10);

/// The session is named by the last segment of the path; nothing else is needed to attach it. A
/// session that is not there is answered in the one way that keeps browsers from asking again.
pub async fn answer(request: &Request) -> Response {
    let id = request.below().rsplit('/').next().unwrap_or_default();
    let mut tries = Tries::default();
    let session = loop {
        match request.site.visit_one(id).await {
            Ok(Some(visit)) => break visit.0.clone(),
            Ok(None) => {
                let mut response = Response::default();
                *response.status_mut() = StatusCode::NO_CONTENT;
                return response;
            }
            Err(elsewhere) => {
                if let Some(response) = request.pass_on(elsewhere, &[], &mut tries).await {
                    return response;
                }
            }
        }
    };
    session.touch();
    let mut comments = interval(COMMENT_EVERY);
    comments.reset();
    let mut response = warp::reply::stream(EventStream {
        carrier: Arc::new(session.attach(Vehicle::Stream)),
        receipts: request.receipts.clone(),
        comments,
        events: VecDeque::new(),
        is_open: false,
        has_ended: false,
    })
    .into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache, no-store"),
        (CONNECTION, "close"),
        // nginx would collect what is to arrive at once.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

struct EventStream {
    carrier: Arc<Carrier<Client>>,
    receipts: Receipts,
    comments: Interval,
    /// Empty between two polls.
    events: VecDeque<Frame>,
    is_open: bool,
    has_ended: bool,
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut this.is_open, true) {
            return Poll::Ready(Some(Ok(Bytes::from_static(RETRY.as_bytes()))));
        }
        let (carrier, events) = (&this.carrier, &mut this.events);
        match carrier.poll_take_to(&this.receipts, cx, events, |_| false) {
            Poll::Ready(Ok(())) => {
                let events = this.events.drain(..);
                let text: String = events.map(|event| stream_event(event.as_str())).collect();
                let (carrier, newest) = (this.carrier.clone(), this.carrier.clone());
                this.receipts.when_written_if(
                    move || newest.wanted(),
                    move || {
                        carrier.written();
                        carrier.session.outbox.wake();
                    },
                );
                return Poll::Ready(Some(Ok(text.into())));
            }
            Poll::Ready(Err(Parted::Moved)) => {
                this.has_ended = true;
                return Poll::Ready(Some(Ok(Bytes::from_static(RETRY_SOON.as_bytes()))));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        (this.comments.poll_tick(cx)).map(|_| Some(Ok(Bytes::from_static(COMMENT.as_bytes()))))
    }
}
