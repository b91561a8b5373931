//! What the HTTP side of every front end needs.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use warp::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use crate::metrics::{CUT_OFFS, CutOff};

/// A body has to be there within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is received and dropped.
const DROPPED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After so much of a body that is there already others have their turn.
const BYTES_AT_ONCE: usize = 64 * 1024;
/// And one that is too large waits: nobody gains by receiving fast what is only dropped. The most
/// that is dropped takes about two seconds, so that a body without end does not hold its connection.
const DROP_PAUSE: Duration = Duration::from_millis(8);
/// Bodies that are dropped at the same time, so about 64 MiB each second of the whole server. Who
/// sends one more may find its connection closed before it reads the answer.
static DROPS: Semaphore = Semaphore::const_new(8);

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

/// In the extensions of an answer to so many messages that publish nothing.
#[derive(Clone, Copy)]
pub struct ControlMessages {
    pub count: usize,
    /// Beyond it the connection is read no faster.
    pub per_sec_max: usize,
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

/// Keeps no more than `bytes_max` at any moment, and nothing of a body whose `headers` announce
/// more.
pub async fn read_body<E>(
    headers: &HeaderMap,
    chunks: impl Stream<Item = Result<impl Buf, E>>,
    bytes_max: usize,
) -> Result<Vec<u8>, BodyError> {
    let announced = headers.get(CONTENT_LENGTH);
    let announced = announced.and_then(|bytes| bytes.to_str().ok()?.parse::<u64>().ok());
    let is_too_large = announced.is_some_and(|bytes| bytes > bytes_max as u64);
    let bytes_max = if is_too_large { 0 } else { bytes_max };
    let mut reading = pin!(read(chunks, bytes_max));
    // Most are there already, and need no timer.
    let body = match futures_util::poll!(&mut reading) {
        Poll::Ready(body) => body,
        Poll::Pending => (timeout(BODY_TIMEOUT, reading).await).unwrap_or(Err(BodyError::TooSlow)),
    };
    match body {
        Err(BodyError::TooLarge) => CUT_OFFS.count(CutOff::BodyTooLarge),
        Err(BodyError::TooSlow) => CUT_OFFS.count(CutOff::BodyTimeout),
        Ok(_) | Err(BodyError::CutOff) => {}
    }
    body
}

async fn read<E>(
    chunks: impl Stream<Item = Result<impl Buf, E>>,
    bytes_max: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut chunks = pin!(chunks);
    let (mut body, mut paused_at) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| BodyError::CutOff)?;
        if body.len() + chunk.remaining() > bytes_max {
            drop(body);
            return Err(drop_rest(chunks).await);
        }
        body.put(chunk);
        if body.len() - paused_at >= BYTES_AT_ONCE {
            paused_at = body.len();
            yield_now().await;
        }
    }
    Ok(body)
}

/// Of a body that is too large, so that a peer that first writes all and then reads gets its answer.
async fn drop_rest<E>(mut chunks: impl Stream<Item = Result<impl Buf, E>> + Unpin) -> BodyError {
    let Ok(_permit) = DROPS.try_acquire() else {
        return BodyError::TooLarge;
    };
    let (mut dropped, mut paused_at) = (0, 0);
    while let Some(chunk) = chunks.next().await {
        let Ok(chunk) = chunk else {
            return BodyError::CutOff;
        };
        dropped += chunk.remaining();
        if dropped > DROPPED_BYTES_MAX {
            break;
        }
        if dropped - paused_at >= BYTES_AT_ONCE {
            paused_at = dropped;
            sleep(DROP_PAUSE).await;
        }
    }
    BodyError::TooLarge
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::stream;

    #[tokio::test]
    async fn a_large_body_that_is_there_lets_others_have_their_turn() {
        const CHUNKS: usize = 64;
        let chunk = || Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 16 * 1024]));
        let chunks = stream::iter((0..CHUNKS).map(move |_| chunk()));
        let reading =
            tokio::spawn(async move { read_body(&HeaderMap::new(), chunks, usize::MAX).await });
        let mut turns = 0;
        while !reading.is_finished() {
            turns += 1;
            yield_now().await;
        }
        assert_eq!(reading.await.unwrap().unwrap().len(), CHUNKS * 16 * 1024);
        assert!(turns > CHUNKS / 8, "{turns} turns");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_much_is_dropped_slowly_and_all_of_a_body_that_says_so() {
        const CHUNK: usize = 16 * 1024;
        let chunks = || {
            stream::iter((0..65).map(|_| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; CHUNK]))))
        };
        let mut announcing = HeaderMap::new();
        announcing.insert(CONTENT_LENGTH, HeaderValue::from(65 * CHUNK));
        for (headers, dropped) in [(announcing, 64), (HeaderMap::new(), 32)] {
            let begin = tokio::time::Instant::now();
            let body = read_body(&headers, chunks(), 32 * CHUNK).await;
            assert_eq!(body, Err(BodyError::TooLarge));
            let pauses = dropped * CHUNK / BYTES_AT_ONCE;
            assert_eq!(begin.elapsed(), DROP_PAUSE * pauses as u32);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_end_is_given_up_after_few_seconds() {
        let endless =
            stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 16 * 1024])));
        let begin = tokio::time::Instant::now();
        let body = read_body(&HeaderMap::new(), endless, 0).await;
        assert_eq!(body, Err(BodyError::TooLarge));
        let pauses = DROPPED_BYTES_MAX / BYTES_AT_ONCE;
        assert_eq!(begin.elapsed(), DROP_PAUSE * pauses as u32);
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
}
