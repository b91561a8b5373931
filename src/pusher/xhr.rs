//! The transports of pusher-js over HTTP (`pusher.md` 7.2–7.4): `xhr_streaming`, `xhr_polling`,
//! and the same of old browsers, which ask the same in other words.

use std::sync::Arc;

use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, ORIGIN};
use warp::reply::Response;

use super::Front;
use super::connection::Connection;
use super::encoding::HTTP;
use super::handshake;
use super::http::{Body, Request, receiving, with_receiving_headers};
use super::sessions::{ClientSession, Fallback, Receiving, Talk};
use super::stream::{Answer, farewell, superseded};
use super::websocket::audited;
use crate::auth::percent_decode;
use crate::hub::Outbox;
use crate::transport::http::BodyError;
use crate::transport::peer::Peer;
use crate::transport::session::Vehicle;
use crate::transport::websocket::Close;
use crate::wire::sockjs::{self, ANSWER_UNITS_MAX, Framing, OPEN};

/// `xhr_streaming` and `xhr`: brings what there is for the client. The first such request of a
/// session opens it.
pub async fn receive(request: &Request, key: &str, session_id: &str, vehicle: Vehicle) -> Response {
    let fallback = &request.fallback;
    let opened = fallback.find_or_open(session_id, request.peer.address, |outbox| {
        let Request {
            query,
            headers,
            peer,
            ..
        } = request;
        let (key, origin) = (percent_decode(key), headers.get(ORIGIN));
        let connection = connect(&fallback.front, &key, query, origin, *peer, outbox)?;
        let numbers = (fallback.browsers).numbers(peer.address, headers, session_id);
        Ok((Talk::Open(Box::new(connection)), numbers))
    });
    match opened {
        Ok(session) => answer(request, &session, vehicle, Framing::Lines).await,
        Err(close) => {
            request.brings_nothing(session_id);
            refused(&close, &Framing::Lines)
        }
    }
}

/// A connection that is carried over HTTP.
pub fn connect(
    front: &Arc<Front>,
    key: &str,
    query: &str,
    origin: Option<&HeaderValue>,
    peer: Peer,
    outbox: &Arc<Outbox>,
) -> Result<Connection, Close> {
    let checked = handshake::check(front, key, query, origin, peer);
    let opened =
        checked.and_then(|app| Connection::open(front.clone(), app, outbox.clone(), &HTTP));
    let connection = audited(key, peer, opened)?;
    connection.can_move();
    Ok(connection)
}

/// Brings what there is for the client of a session.
pub async fn answer(
    request: &Request,
    session: &ClientSession,
    vehicle: Vehicle,
    framing: Framing,
) -> Response {
    let fallback = &request.fallback;
    let received = fallback.receive(session, request.stamp(), vehicle).await;
    let (carrier, opens) = match received {
        Receiving::Carrier { carrier, opens } => (carrier, opens),
        Receiving::Refused => return receiving(superseded(&framing), &framing),
    };
    let answer = Answer {
        carrier,
        opens,
        units_max: ANSWER_UNITS_MAX,
        receipts: request.receipts.clone(),
        framing: framing.clone(),
    };
    let response = match vehicle {
        Vehicle::Stream => answer.stream(fallback.clone()),
        Vehicle::Poll | Vehicle::Socket => answer.poll().await,
    };
    with_receiving_headers(response, &framing)
}

/// All in one answer, so that nothing has to be remembered for the next.
pub fn refused(close: &Close, framing: &Framing) -> Response {
    tracing::debug!(code = close.code, "connection refused");
    let opening = match framing.is_single() {
        true => String::new(),
        false => framing.frame(OPEN),
    };
    receiving(opening + &farewell(framing, close), framing)
}

/// `xhr_send`: an array of messages, each as it would be sent over a WebSocket. The client looks
/// at nothing of the answer. `read` finds the array in the body.
pub async fn send(
    request: &Request,
    session_id: &str,
    body: Body,
    read: impl FnOnce(String) -> String,
) -> Response {
    match take(request, session_id, body, read).await {
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
    body: Body,
    read: impl FnOnce(String) -> String,
) -> Result<(), Box<Response>> {
    let refusal = |status, message: &str| {
        request.brings_nothing(session_id);
        let response = crate::transport::http::text(status, message);
        Err(Box::new(response))
    };
    let fallback: &Arc<Fallback> = &request.fallback;
    let Some(session) = fallback.sessions.find(session_id) else {
        return refusal(StatusCode::NOT_FOUND, "Unknown session");
    };
    let body = match body {
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
        Ok(text) => sockjs::messages(&read(text)),
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
