//! What the HTTP side of every front end needs.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt};
use tokio::task::yield_now;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use crate::metrics::{CUT_OFFS, CutOff};

/// A body has to be there within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is received and dropped, so that a peer that first writes
/// all and then reads gets its answer.
const DROPPED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After so much of a body that is there already others have their turn.
const BYTES_BEFORE_YIELD: usize = 64 * 1024;

/// Does the work to its end, even if whoever asked for it goes away meanwhile and the request is
/// dropped. `None` if that is not possible.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let mut work = Box::pin(work);
    // Most need no task for that.
    match futures_util::poll!(&mut work) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => tokio::spawn(work).await.ok(),
    }
}

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
    let (mut received, mut paused_at) = (0_usize, 0);
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
        if received - paused_at >= BYTES_BEFORE_YIELD {
            paused_at = received;
            yield_now().await;
        }
    }
    (received <= bytes_max)
        .then_some(body)
        .ok_or(BodyError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

    #[tokio::test]
    async fn a_large_body_that_is_there_lets_others_have_their_turn() {
        const CHUNKS: usize = 64;
        let chunk = || Ok(Bytes::from_static(&[b'x'; 16 * 1024]));
        let chunks = stream::iter((0..CHUNKS).map(move |_| chunk()));
        let reading = tokio::spawn(read_body(chunks, usize::MAX));
        let mut turns = 0;
        while !reading.is_finished() {
            turns += 1;
            yield_now().await;
        }
        assert_eq!(reading.await.unwrap().unwrap().len(), CHUNKS * 16 * 1024);
        assert!(turns > CHUNKS / 8, "{turns} turns");
    }
}
