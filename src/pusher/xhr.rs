//! The transports of pusher-js over HTTP (`pusher.md` 7.2–7.4): `xhr_streaming`, `xhr_polling`,
//! and the same of old browsers, which ask the same in other words.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::connection::Connection;
use super::encoding::HTTP;
use super::handshake;
use super::http::{JAVASCRIPT, Request, receiving};
use super::sessions::{Fallback, Receiving};
use super::stream::{Answer, farewell, superseded};
use crate::audit;
use crate::auth::percent_decode;
use crate::transport::http::{BodyError, read_body};
use crate::transport::session::Vehicle;
use crate::transport::websocket::Close;
use crate::wire::sockjs::{self, ANSWER_UNITS_MAX, OPEN, PRELUDE_BYTES, line};

/// `xhr_streaming` and `xhr`: brings what there is for the client. The first such request of a
/// session opens it.
pub async fn receive(request: &Request, key: &str, session_id: &str, vehicle: Vehicle) -> Response {
    let fallback = &request.fallback;
    let opened = fallback.find_or_open(session_id, |outbox| {
        let Request {
            query,
            headers,
            peer,
            ..
        } = request;
        let front = fallback.front.clone();
        let app = handshake::check(&front, &percent_decode(key), query, headers, *peer)?;
        let connection = Connection::open(front, app, outbox.clone(), &HTTP)?;
        let (app, socket_id) = connection.id();
        audit::connected(app, socket_id, peer.address);
        let numbers = (fallback.browsers).numbers(peer.address, headers, session_id);
        Ok((connection, numbers))
    });
    let session = match opened {
        Ok(session) => session,
        Err(close) => {
            request.is_of_no_session(session_id);
            return refused(&close);
        }
    };
    let stamp = request.stamp();
    let (carrier, opens) = match fallback.receive(&session, stamp, vehicle).await {
        Receiving::Carrier { carrier, opens } => (carrier, opens),
        Receiving::Refused => return receiving(superseded(), JAVASCRIPT),
    };
    let answer = Answer {
        carrier,
        opens,
        units_max: ANSWER_UNITS_MAX,
        receipts: request.receipts.clone(),
    };
    let response = match vehicle {
        Vehicle::Stream => answer.stream(&prelude(), fallback.clone()),
        Vehicle::Poll | Vehicle::Socket => answer.poll().await,
    };
    super::http::with_receiving_headers(response, JAVASCRIPT)
}

/// A line that old browsers and buffering proxies want to see before they pass on anything.
fn prelude() -> String {
    sockjs::HEARTBEAT.repeat(PRELUDE_BYTES) + "\n"
}

/// All in one answer, so that nothing has to be remembered for the next.
fn refused(close: &Close) -> Response {
    tracing::debug!(code = close.code, "connection refused");
    receiving(line(OPEN) + &farewell(close), JAVASCRIPT)
}

/// `xhr_send`: an array of messages, each as it would be sent over a WebSocket. The client looks
/// at nothing of the answer.
pub async fn send(
    request: &Request,
    session_id: &str,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    match take(request, session_id, body).await {
        Ok(()) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            let plain = HeaderValue::from_static("text/plain; charset=UTF-8");
            response.headers_mut().insert(CONTENT_TYPE, plain);
            response
        }
        Err(response) => *response,
    }
}

/// Takes the messages of a request. `Err` is the answer to one that brings none.
async fn take(
    request: &Request,
    session_id: &str,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<(), Box<Response>> {
    let refusal = |status, message: &str| {
        let response = crate::transport::http::text(status, message);
        Err(Box::new(response))
    };
    let fallback: &Arc<Fallback> = &request.fallback;
    let Some(session) = fallback.sessions.find(session_id) else {
        request.is_of_no_session(session_id);
        return refusal(StatusCode::NOT_FOUND, "Unknown session");
    };
    let message_bytes_max = fallback.front.websocket.inbound_message_bytes_max;
    // Every byte of the largest message may be escaped, some by six.
    let body = match read_body(body, 6 * message_bytes_max + 1024).await {
        Ok(body) => body,
        Err(BodyError::TooLarge) => {
            Fallback::close(&session, Close::plain(1009, "Message too large"));
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large");
        }
        Err(BodyError::CutOff | BodyError::TooSlow) => {
            return refusal(StatusCode::BAD_REQUEST, "Request body incomplete");
        }
    };
    let messages = match String::from_utf8(body) {
        Ok(text) => sockjs::messages(&text),
        Err(_) => Err(sockjs::Unreadable::Broken),
    };
    match messages {
        Ok(messages) => {
            fallback.send(&session, request.stamp(), messages).await;
            Ok(())
        }
        Err(why) => refusal(StatusCode::INTERNAL_SERVER_ERROR, why.text()),
    }
}
