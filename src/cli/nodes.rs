//! `raptor nodes`.

use std::fmt::Write;

use raptor::backend::redis::{NodeInfo, Redis, Settings};
use raptor::model::now_ms;

/// A line for each node.
pub async fn table(redis: &Settings) -> Result<String, String> {
    let nodes = Redis::nodes(redis).await;
    let nodes = nodes.map_err(|error| format!("cannot ask Redis: {error}"))?;
    Ok(text(&nodes, now_ms()))
}

fn text(nodes: &[NodeInfo], now_ms: u64) -> String {
    let mut text = match nodes {
        [] => return "no nodes".to_owned(),
        [_] => "1 node".to_owned(),
        _ => format!("{} nodes", nodes.len()),
    };
    for node in nodes {
        let secs_since = |ms: u64| now_ms.saturating_sub(ms) / 1000;
        let _ = write!(
            text,
            "\n  {:>10}  {}  version {}  up {} s  seen {} s ago  {} channels",
            node.node,
            node.address,
            node.version,
            secs_since(node.started_ms),
            secs_since(node.beat_ms),
            node.channels,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_line() {
        let node = NodeInfo {
            node: 7,
            address: "127.0.0.1:6001".to_owned(),
            version: "1.2.3".to_owned(),
            started_ms: 1_000,
            beat_ms: 59_500,
            channels: 12,
        };
        let line =
            "           7  127.0.0.1:6001  version 1.2.3  up 59 s  seen 0 s ago  12 channels";
        assert_eq!(text(&[], 0), "no nodes");
        assert_eq!(text(&[node], 60_000), format!("1 node\n{line}"));
    }
}
