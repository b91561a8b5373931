//! `raptor webhooks`: what became of deliveries, and sending some again. Works on the directory or
//! the Redis of the configuration, whether its servers run or not.

use raptor::webhooks::{Archive, Attempt, Listed, State, StoreError};

/// What to do with deliveries.
pub enum Wish {
    List {
        state: Option<State>,
        deliveries_max: usize,
    },
    Show(String),
    Replay(Vec<String>),
    ReplayDead,
}

impl Wish {
    /// What to print, or what went wrong in words.
    pub async fn run(self, archive: Result<Archive, StoreError>) -> Result<String, String> {
        let archive = archive.map_err(told)?;
        match self {
            Self::List {
                state,
                deliveries_max,
            } => list(&archive, state, deliveries_max).await,
            Self::Show(id) => {
                let found = archive.find(&id).await.map_err(told)?;
                Ok(show(
                    &found.ok_or_else(|| format!("there is no delivery {id}"))?,
                ))
            }
            Self::Replay(ids) => replay(&archive, &ids).await,
            Self::ReplayDead => match archive.replay_dead().await.map_err(told)? {
                1 => Ok("1 dead letter will be sent again".to_owned()),
                count => Ok(format!("{count} dead letters will be sent again")),
            },
        }
    }
}

fn told(error: StoreError) -> String {
    error.to_string()
}

async fn list(
    archive: &Archive,
    state: Option<State>,
    deliveries_max: usize,
) -> Result<String, String> {
    let found = archive.list(state, deliveries_max).await.map_err(told)?;
    if found.is_empty() {
        return Ok("no deliveries".to_owned());
    }
    let lines = found.iter().map(|listed| {
        let Listed {
            delivery,
            app,
            endpoint_name,
            attempts,
        } = listed;
        let last = attempts.last().map_or("never sent".to_owned(), outcome);
        format!(
            "{}  {:9}  {}  app {app}  {endpoint_name}  {}  {}, {last}",
            delivery.id,
            delivery.state.name(),
            utc(delivery.created_ms),
            count(delivery.seqs.len(), "event"),
            count(attempts.len(), "attempt"),
        )
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn show(listed: &Listed) -> String {
    let Listed {
        delivery,
        app,
        endpoint_name,
        attempts,
    } = listed;
    let mut text = format!(
        "delivery  {}\nstate     {}\napp       {app}\nendpoint  {endpoint_name}\ncreated   {}\n\
         events    {}\nkey       {}\nsignature {}\n",
        delivery.id,
        delivery.state.name(),
        utc(delivery.created_ms),
        delivery.seqs.len(),
        delivery.key,
        delivery.signature,
    );
    for attempt in attempts {
        text += &format!(
            "attempt   {}  {} ms  {}\n",
            utc(attempt.at_ms),
            attempt.took_ms,
            outcome(attempt)
        );
    }
    text += "body      ";
    text += &match &delivery.body {
        Some(body) => String::from_utf8_lossy(body),
        None => "not kept (keep_bodies in [webhooks])".into(),
    };
    text
}

async fn replay(archive: &Archive, ids: &[String]) -> Result<String, String> {
    let mut refused = Vec::new();
    for id in ids {
        if !archive.replay(id).await.map_err(told)? {
            refused.push(id.as_str());
        }
    }
    match refused.is_empty() {
        true => Ok(format!(
            "{} will be sent again",
            count(ids.len(), "delivery")
        )),
        false => Err(format!(
            "not known, not over yet, or without a body: {}",
            refused.join(" ")
        )),
    }
}

fn outcome(attempt: &Attempt) -> String {
    match (attempt.status, &attempt.error) {
        (Some(status), _) => format!("status {status}"),
        (None, Some(error)) => error.clone(),
        (None, None) => "no answer".to_owned(),
    }
}

fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// `2026-11-24T20:39:24Z`, after Howard Hinnant's `civil_from_days`.
fn utc(since_1970_ms: u64) -> String {
    let secs = since_1970_ms / 1_000;
    let (days, time) = (secs / 86_400 + 719_468, secs % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hours, minutes, secs) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{secs:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_327_078_148_132, "2012-01-20T16:49:08Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[tokio::test]
    async fn where_no_store_is_none_is_made() {
        let dir = std::env::temp_dir().join("raptor-has-no-such-directory");
        let archive = Archive::in_directory(&dir);
        let error = Wish::ReplayDead.run(archive).await.unwrap_err();
        assert!(error.contains("cannot open"), "{error}");
        assert!(!dir.exists());
    }
}
