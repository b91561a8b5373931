//! What the HTTP side of every front end needs.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt};
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use crate::metrics::{CUT_OFFS, CutOff};

/// A body has to be there within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is received and dropped, so that a peer that first writes
/// all and then reads gets its answer.
const DROPPED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A successful answer.
pub fn json(body: String) -> Response {
    let mut response = Response::new(body.into());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A plain text answer. Its body ends in one line feed (`pusher.md` 5.9).
pub fn text(status: StatusCode, message: &str) -> Response {
    let mut response = Response::new(format!("{message}\n").into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// Why there is no body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyError {
    TooLarge,
    TooSlow,
    CutOff,
}

/// Keeps no more than `bytes_max` at any moment.
pub async fn read_body(
    chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    bytes_max: usize,
) -> Result<Vec<u8>, BodyError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, read(chunks, bytes_max));
    let body = read.await.unwrap_or(Err(BodyError::TooSlow));
    match body {
        Err(BodyError::TooLarge) => CUT_OFFS.count(CutOff::BodyTooLarge),
        Err(BodyError::TooSlow) => CUT_OFFS.count(CutOff::BodyTimeout),
        Ok(_) | Err(BodyError::CutOff) => {}
    }
    body
}

async fn read(
    chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    bytes_max: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut chunks = pin!(chunks);
    let mut body = Vec::new();
    let mut received = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| BodyError::CutOff)?;
        received += chunk.remaining();
        if received <= bytes_max {
            body.put(chunk);
        } else if received - bytes_max > DROPPED_BYTES_MAX {
            break;
        } else {
            body = Vec::new();
        }
    }
    (received <= bytes_max)
        .then_some(body)
        .ok_or(BodyError::TooLarge)
}
