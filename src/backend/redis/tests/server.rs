//! Real redis-server processes, and a way to them that can be disturbed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// A server on a free port of loopback. Ends with this.
pub struct RedisServer {
    pub port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    child: Child,
}

impl RedisServer {
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_on(free_port(), arguments).await
    }

    pub async fn start_on(port: u16, arguments: &[&str]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("raptor-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let arguments: Vec<String> = arguments.iter().map(|text| text.to_string()).collect();
        let child = spawn(port, &directory, &arguments);
        let server = Self {
            port,
            directory,
            arguments,
            child,
        };
        server.answers().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The process dies; what it had in memory is lost.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.arguments);
        self.answers().await;
    }

    /// Another one, with the same data as this from now on.
    pub async fn start_replica(&self) -> Self {
        let port = self.port.to_string();
        let replica = Self::start(&["--replicaof", "127.0.0.1", &port]).await;
        let in_sync = async {
            while !(replica.ask::<String>(&["INFO", "replication"]).await)
                .contains("master_link_status:up")
            {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), in_sync)
            .await
            .expect("the replica does not follow");
        replica
    }

    /// It is the primary now.
    pub async fn promote(&mut self) {
        let () = self.ask(&["REPLICAOF", "NO", "ONE"]).await;
        self.arguments.clear();
    }

    /// `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let done = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status()
            .unwrap();
        assert!(done.success());
    }

    pub async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    pub async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
            .query_async(&mut self.connect().await)
            .await
            .unwrap()
    }

    async fn answers(&self) {
        let answers = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                .await
                .is_err()
            {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), answers)
            .await
            .expect("redis-server does not start");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn spawn(port: u16, directory: &PathBuf, arguments: &[String]) -> Child {
    let port = port.to_string();
    Command::new("redis-server")
        .args([
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            // A server that starts again has no data, though it once followed another.
            "--rdb-del-sync-files",
            "yes",
            "--dir",
        ])
        .arg(directory)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is not installed")
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Fair,
    /// Every connection breaks, new ones are refused.
    Refused,
    /// Nothing arrives in either direction, without an error. When it is over, what was sent
    /// comes late, as TCP does it.
    Blackhole,
    /// What the server says on its own does not arrive: only the connection that subscribed.
    HalfDead,
    /// Each direction is late by this.
    Slow(Duration),
}

/// A way to a server.
pub struct Proxy {
    pub port: u16,
    /// Of the server.
    target: Arc<AtomicU16>,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (weather, _) = watch::channel(Weather::Fair);
        let watched = weather.subscribe();
        let target = Arc::new(AtomicU16::new(port));
        let leads_to = target.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let port = leads_to.load(Ordering::Relaxed);
                if *watched.borrow() != Weather::Refused {
                    tokio::spawn(pass(stream, port, watched.clone()));
                }
            }
        });
        Self {
            port: own,
            target,
            weather,
        }
    }

    /// Leads new connections to another server.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn pass(client: TcpStream, port: u16, mut weather: watch::Receiver<Weather>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(server) = TcpStream::connect(address).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let subscribes = Arc::new(AtomicBool::new(false));
    let (w1, w2, s1, s2) = (
        weather.clone(),
        weather.clone(),
        subscribes.clone(),
        subscribes,
    );
    let up = copy(from_client, to_server, w1, s1, true);
    let down = copy(from_server, to_client, w2, s2, false);
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = weather.wait_for(|weather| *weather == Weather::Refused) => {}
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    subscribes: Arc<AtomicBool>,
    is_up: bool,
) {
    use Ordering::Relaxed;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if is_up && buffer[..bytes].windows(9).any(|part| part == b"SUBSCRIBE") {
            subscribes.store(true, Relaxed);
        }
        let arrives = |weather: &Weather| match weather {
            Weather::Blackhole => false,
            Weather::HalfDead => is_up || !subscribes.load(Relaxed),
            _ => true,
        };
        let Ok(now) = weather.wait_for(arrives).await.map(|weather| *weather) else {
            return;
        };
        if let Weather::Slow(delay) = now {
            sleep(delay).await;
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
