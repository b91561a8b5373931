//! Whether those who behave notice those who do not: p99 from publish to arrival, in phases with and
//! without an attack that take turns, and what the server counted meanwhile.
//!
//! ```sh
//! cargo bench --bench hostile                        # everything, about a quarter of an hour
//! cargo bench --bench hostile -- slow-loris flood    # some of it
//! ```
//!
//! The attackers are a process of their own with the lowest priority: they are to hurt by what they
//! do to the server and not by what they take of this machine. On a machine that has other work, run
//! it with a higher priority than that: `setsid sh -c 'echo -10 > /proc/self/autogroup; exec …'`.

mod support;

use std::cell::RefCell;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raptor::auth::Secret;
use support::{Http, Server, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

/// What is tried, how many listen meanwhile, how many events are sent a second and for how many
/// seconds in each phase, and how much slower the others may become.
const ATTACKS: [(&str, Load); 11] = [
    ("slow-loris", Load::FEW),
    ("half-open", Load::FEW),
    ("large-messages", Load::FEW),
    ("large-bodies", Load::FEW),
    ("bombs", Load::FEW),
    ("subscriptions", Load::FEW),
    ("flood", Load::FEW),
    ("pings", Load::FEW),
    ("bayeux-flood", Load::FEW),
    ("requests", Load::FEW),
    ("stopped", Load::MANY),
];
const CONNECTIONS: usize = 1_000;
const SUBSCRIPTIONS: usize = 100_000;
const PATH: &str = "/app/key?protocol=7";

#[derive(Clone, Copy)]
struct Load {
    subscribers: usize,
    events_per_sec: u32,
    event_bytes: usize,
    phase_secs: u64,
    rounds: usize,
    ratio_max: f64,
}

impl Load {
    const FEW: Self = Self {
        subscribers: 50,
        events_per_sec: 100,
        event_bytes: 1_000,
        phase_secs: 2,
        rounds: 15,
        ratio_max: 1.5,
    };
    /// A tenth more of them stop reading.
    const MANY: Self = Self {
        subscribers: 9_000,
        events_per_sec: 4,
        event_bytes: 4_000,
        phase_secs: 8,
        rounds: 5,
        ratio_max: 1.2,
    };
}

fn main() {
    let arguments: Vec<_> = env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    if arguments.first().is_some_and(|a| a == "attack") {
        let ports: Vec<u16> = arguments[2..].iter().map(|p| p.parse().unwrap()).collect();
        let port = [ports[0], ports[1]];
        return local.block_on(&runtime, attack(&arguments[1], port));
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    let mut all_hold = true;
    for (name, load) in ATTACKS.into_iter().filter(|(name, _)| wanted(name)) {
        all_hold &= local.block_on(&runtime, measure(name, load));
    }
    assert!(all_hold, "somebody who behaves noticed");
}

/// Whether the others stay within their bound.
async fn measure(name: &str, load: Load) -> bool {
    let raptor = Raptor::start();
    let port = raptor.server.port;
    let times = Rc::new(RefCell::new(Histogram::<u64>::new(3).unwrap()));
    let mut subscribers = Vec::new();
    for _ in 0..load.subscribers {
        subscribers.push(subscribe(WebSocket::connect(port, PATH).await).await);
    }
    let listening: Vec<_> = subscribers
        .into_iter()
        .map(|subscriber| tokio::task::spawn_local(listen(subscriber, times.clone())))
        .collect();
    let mut publisher = Http::connect(port).await;
    let mut attackers = Attackers::start(name, port, raptor.tls_port);
    publish(&mut publisher, load, Duration::from_secs(1)).await;

    let before = raptor.counted().await;
    let (mut quiet, mut attacked) = (Phases::new(), Phases::new());
    for _ in 0..load.rounds {
        for (command, phases) in [("quiet", &mut quiet), ("attack", &mut attacked)] {
            attackers.tell(command);
            sleep(Duration::from_millis(300)).await;
            times.borrow_mut().clear();
            publish(&mut publisher, load, Duration::from_secs(load.phase_secs)).await;
            sleep(Duration::from_millis(300)).await;
            let times = times.borrow();
            let sent = u64::from(load.events_per_sec) * load.phase_secs;
            let expected = sent * load.subscribers as u64;
            assert_eq!(times.len(), expected, "{name}: events were lost");
            phases.p99s.push(times.value_at_quantile(0.99));
            phases.times.add(&*times).unwrap();
        }
    }
    let after = raptor.counted().await;
    drop(attackers);
    assert!(
        listening.iter().all(|task| !task.is_finished()),
        "{name}: somebody was cut off"
    );
    listening.iter().for_each(JoinHandle::abort);

    println!("{name}: p99 in ms without {}", quiet.show());
    println!("{name}: p99 in ms with    {}", attacked.show());
    let ratio = attacked.p99() as f64 / quiet.p99() as f64;
    // Whatever else the machine does only ever adds.
    let undisturbed = attacked.lower_quartile() as f64 / quiet.lower_quartile() as f64;
    let holds = ratio <= load.ratio_max;
    let (verdict, max) = (if holds { "holds" } else { "MISSED" }, load.ratio_max);
    println!("{name}: lower quartiles {undisturbed:.2} times");
    println!("{name}: p99 {ratio:.2} times, at most {max}: {verdict}");
    for (sample, value) in after {
        let was = before.iter().find(|(known, _)| *known == sample);
        let more = value - was.map_or(0.0, |(_, value)| *value);
        if more > 0.0 {
            println!("{name}: counted {more} {sample}");
        }
    }
    holds
}

/// What was measured with an attack, or without, in µs.
struct Phases {
    /// Of all together: in a single one p99 is that of its slowest event or two.
    times: Histogram<u64>,
    p99s: Vec<u64>,
}

impl Phases {
    fn new() -> Self {
        Self {
            times: Histogram::new(3).unwrap(),
            p99s: Vec::new(),
        }
    }

    fn p99(&self) -> u64 {
        self.times.value_at_quantile(0.99)
    }

    fn lower_quartile(&self) -> u64 {
        let mut sorted = self.p99s.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 4]
    }

    fn show(&self) -> String {
        let shown = |micros: &u64| format!("{:.2}", *micros as f64 / 1000.0);
        let each: Vec<_> = self.p99s.iter().map(shown).collect();
        format!("{}; in all {}", each.join(" "), shown(&self.p99()))
    }
}

fn since_start() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

async fn subscribe(mut socket: WebSocket) -> WebSocket {
    socket.expect("connection_established").await;
    socket
        .send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#)
        .await;
    socket.expect("subscription_succeeded").await;
    socket
}

/// Each event holds when it was due.
async fn listen(mut socket: WebSocket, times: Rc<RefCell<Histogram<u64>>>) {
    while let Some(frame) = socket.frame().await {
        let text = String::from_utf8_lossy(&frame);
        let Some((_, rest)) = text.split_once("due=") else {
            continue;
        };
        let due = rest.split('.').next().and_then(|due| due.parse().ok());
        let took = since_start() - due.unwrap_or(0);
        times.borrow_mut().record(took.max(1)).unwrap();
    }
}

async fn publish(publisher: &mut Http, load: Load, within: Duration) {
    let interval = Duration::from_secs(1) / load.events_per_sec;
    let padding = "x".repeat(load.event_bytes);
    let begin = (tokio::time::Instant::now(), since_start());
    let events = load.events_per_sec * within.as_secs() as u32;
    for nth in 0..events {
        let due = interval * nth;
        // A server that makes its publisher wait is not forgiven; a timer that comes late is.
        let mut stamp = begin.1 + due.as_micros() as u64;
        if begin.0.elapsed() < due {
            sleep_until(begin.0 + due).await;
            stamp = since_start();
        }
        let body = format!(r#"{{"channel":"/news","data":"due={stamp}.{padding}"}}"#);
        publisher.post_json("/faye", &body).await;
    }
    sleep_until(begin.0 + within).await;
}

struct Raptor {
    server: Server,
    tls_port: u16,
    metrics_port: u16,
    directory: PathBuf,
}

impl Raptor {
    fn start() -> Self {
        let directory = env::temp_dir().join(format!("raptor-hostile-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = |name: &str| directory.join(name).display().to_string();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args([
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                "/CN=localhost",
            ])
            .args(["-keyout", &path("key.pem"), "-out", &path("chain.pem")])
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl is installed").success());
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let (tls_port, metrics_port) = (free(), free());
        let (chain, key) = (path("chain.pem"), path("key.pem"));
        let config = format!(
            "listen = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:{metrics_port}'\n\
             handshake_timeout_secs = 2\noutbox_bytes_max = 65536\n\
             [tls]\nlisten = '127.0.0.1:{tls_port}'\ncertificate = '{chain}'\nkey = '{key}'\n\
             [[apps]]\nid = '1'\nkey = 'key'\nsecret = 'secret'\nclient_events = true\n\
             bayeux = {{ mounts = ['/faye'], client_publish = 'open' }}\n\
             limits = {{ subscriptions_per_connection_max = 1000 }}\n"
        );
        fs::write(path("raptor.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_raptor"));
        command.args(["serve", "--log", "error", "--config", &path("raptor.toml")]);
        Self {
            server: Server::start(command),
            tls_port,
            metrics_port,
            directory,
        }
    }

    /// Cut-offs, refusals and answers.
    async fn counted(&self) -> Vec<(String, f64)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port))
            .await
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let of_interest = [
            "raptor_cut_offs",
            "raptor_refusals",
            "raptor_http_responses",
        ];
        text.lines()
            .filter(|line| of_interest.iter().any(|name| line.starts_with(name)))
            .filter_map(|line| {
                let (sample, value) = line.rsplit_once(' ')?;
                Some((sample.to_owned(), value.parse().ok()?))
            })
            .collect()
    }
}

impl Drop for Raptor {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A process that attacks when it is told to.
struct Attackers {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Attackers {
    fn start(name: &str, port: u16, tls_port: u16) -> Self {
        // A session of its own, because the kernel shares the machine out to sessions first.
        let mut process = Command::new("setsid")
            .args(["nice", "-n", "19"])
            .arg(env::current_exe().unwrap())
            .args(["attack", name, &port.to_string(), &tls_port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setsid and nice are there");
        Self {
            commands: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "ready\n");
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn attack(name: &str, ports: [u16; 2]) {
    let _ = fs::write("/proc/self/autogroup", "19");
    let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        io::stdin()
            .lines()
            .map_while(Result::ok)
            .for_each(|line| sender.send(line).unwrap());
        // Whoever measured has gone.
        std::process::exit(0);
    });
    let name: &'static str = ATTACKS.iter().find(|(known, _)| *known == name).unwrap().0;
    let tasks = match name {
        "slow-loris" | "half-open" | "stopped" => CONNECTIONS,
        "subscriptions" => 1,
        "flood" | "pings" | "bayeux-flood" | "requests" => 2,
        _ => 8,
    };
    let (say, said) = watch::channel(false);
    for nth in 0..tasks {
        // Not all in the same moment, again and again.
        let late = Duration::from_millis(2 * nth as u64);
        tokio::task::spawn_local(again(name, ports, late, said.clone()));
    }
    while name == "stopped" && SUBSCRIBED.load(Relaxed) < CONNECTIONS {
        sleep(Duration::from_millis(50)).await;
    }
    while let Some(command) = commands.recv().await {
        say.send_replace(command == "attack");
        println!("ready");
    }
}

/// How often one of those who will stop has subscribed.
static SUBSCRIBED: AtomicUsize = AtomicUsize::new(0);

/// While it is said to.
async fn again(name: &str, ports: [u16; 2], late: Duration, mut said: watch::Receiver<bool>) {
    sleep(late).await;
    if name == "stopped" {
        return stop_and_go(ports[0], said).await;
    }
    while said.wait_for(|attacks| *attacks).await.is_ok() {
        tokio::select! {
            // What is refused at once is not tried again at once.
            _ = once(name, ports) => sleep(Duration::from_millis(20)).await,
            _ = said.wait_for(|attacks| !*attacks) => {}
        }
    }
}

async fn once(name: &str, [port, tls_port]: [u16; 2]) -> io::Result<()> {
    match name {
        "slow-loris" => drip(port).await,
        "half-open" => half_open(tls_port).await,
        "large-messages" => large_message(port).await,
        "large-bodies" => large_body(port).await,
        "bombs" => bombs(port).await,
        "subscriptions" => subscriptions(port).await,
        "flood" => flood(port).await,
        "pings" => pings(port).await,
        "bayeux-flood" => bayeux_flood(port).await,
        "requests" => requests(port).await,
        other => panic!("no attack is called {other}"),
    }
}

/// A subscriber that reads nothing while that is said, and comes back when it was cut off.
async fn stop_and_go(port: u16, mut said: watch::Receiver<bool>) {
    loop {
        let mut socket = subscribe(WebSocket::narrow(port, PATH).await).await;
        SUBSCRIBED.fetch_add(1, Relaxed);
        loop {
            if said.wait_for(|stops| !*stops).await.is_err() {
                return;
            }
            tokio::select! {
                frame = socket.frame() => if frame.is_none() { break },
                _ = said.wait_for(|stops| *stops) => {}
            }
        }
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await
}

/// A head, a byte at a time.
async fn drip(port: u16) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(b"GET /app/key HTTP/1.1\r\nHost: ").await?;
    loop {
        sleep(Duration::from_millis(500)).await;
        stream.write_all(b"x").await?;
    }
}

/// The beginning of a ClientHello that never goes on.
async fn half_open(port: u16) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream
        .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await?;
    stream.read_to_end(&mut Vec::new()).await.map(|_| ())
}

const UPGRADE: &str = "GET /app/key?protocol=7 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: \
                       websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
                       AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: \
                       permessage-deflate\r\n\r\n";

/// Sends something over a WebSocket, and waits for the end.
async fn send(port: u16, frame: &[u8]) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(UPGRADE.as_bytes()).await?;
    stream.write_all(frame).await?;
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(1), stream.read_to_end(&mut rest));
    ended.await.map_or(Ok(()), |ended| ended.map(|_| ()))
}

/// One that is announced to be larger than allowed, and is.
async fn large_message(port: u16) -> io::Result<()> {
    let mut frame = vec![0x81, 0xff];
    frame.extend(70_000_u64.to_be_bytes());
    frame.resize(70_014, 0);
    send(port, &frame).await
}

async fn post(port: u16, head: &str, body: &[u8]) -> io::Result<()> {
    let mut stream = connect(port).await?;
    let length = body.len();
    let head = format!("POST {head}\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    // In pieces, as a network brings them: one call for all of it would keep this machine's kernel
    // busy, and nobody could be served meanwhile.
    for piece in body.chunks(8 * 1024) {
        stream.write_all(piece).await?;
    }
    let mut answer = [0; 256];
    stream.read(&mut answer).await.map(|_| ())
}

async fn large_body(port: u16) -> io::Result<()> {
    post(port, "/apps/1/events HTTP/1.1", &vec![b'x'; 2_000_000]).await?;
    post(
        port,
        "/faye HTTP/1.1\r\nContent-Type: application/json",
        &vec![b'['; 2_000_000],
    )
    .await
}

/// What would be large once it is inflated: a thousand bytes of zeros for each that is sent.
async fn bombs(port: u16) -> io::Result<()> {
    let squeezed = vec![0; 60_000];
    let gzip = "HTTP/1.1\r\nContent-Type: application/json\r\nContent-Encoding: gzip";
    let body = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &squeezed].concat();
    post(port, &format!("/faye {gzip}"), &body).await?;
    post(port, &format!("/apps/1/events {gzip}"), &body).await?;
    // Compressed, though that was not agreed upon.
    let mut frame = vec![0xc1, 0xfe, 0xea, 0x60, 0, 0, 0, 0];
    frame.extend(&squeezed);
    send(port, &frame).await
}

async fn subscriptions(port: u16) -> io::Result<()> {
    let mut socket = WebSocket::connect(port, PATH).await;
    socket.expect("connection_established").await;
    for nth in 0..SUBSCRIPTIONS {
        let channel = format!("c-{nth}");
        socket
            .send(&format!(
                r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#
            ))
            .await;
        if nth % 100 == 99 {
            socket.expect(&channel).await;
        }
    }
    Ok(())
}

/// Client events as fast as they are taken.
async fn flood(port: u16) -> io::Result<()> {
    let mut socket = WebSocket::connect(port, PATH).await;
    let established = socket.expect("connection_established").await;
    let (_, rest) = established
        .split_once(r#"socket_id\":\""#)
        .expect("a socket id");
    let socket_id = rest.split('\\').next().unwrap();
    let signature = Secret::new("secret").sign(format!("{socket_id}:private-room").as_bytes());
    let data = format!(r#"{{"channel":"private-room","auth":"key:{signature}"}}"#);
    socket
        .send(&format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#))
        .await;
    socket.expect("subscription_succeeded").await;
    loop {
        for _ in 0..100 {
            socket
                .send(r#"{"event":"client-flood","channel":"private-room","data":"x"}"#)
                .await;
        }
        socket.send(r#"{"event":"pusher:ping","data":{}}"#).await;
        socket.expect("pusher:pong").await;
    }
}

/// Sends the same without end, and drops what comes back.
async fn pour(stream: TcpStream, bytes: &[u8]) {
    let (mut answers, mut questions) = stream.into_split();
    let mut nowhere = tokio::io::sink();
    let _ = tokio::join!(
        async { while questions.write_all(bytes).await.is_ok() {} },
        tokio::io::copy(&mut answers, &mut nowhere),
    );
}

/// Messages of Bayeux that are refused.
fn refused_messages() -> String {
    let message = r#"{"channel":"/private/room","data":"x"}"#;
    format!("[{}]", [message; 10].join(","))
}

/// Questions whether anybody is there, by both ways.
async fn pings(port: u16) -> io::Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(UPGRADE.as_bytes()).await?;
    let ping = [
        &[0x81, 0x80 | 23, 0, 0, 0, 0][..],
        br#"{"event":"pusher:ping"}"#,
    ]
    .concat();
    let many = [ping, vec![0x89, 0x80, 0, 0, 0, 0]].concat().repeat(100);
    pour(stream, &many).await;
    Ok(())
}

/// Messages that are refused, over a WebSocket.
async fn bayeux_flood(port: u16) -> io::Result<()> {
    let mut socket = WebSocket::connect(port, "/faye").await;
    let many = refused_messages();
    loop {
        socket.send(&many).await;
        socket.expect("false").await;
    }
}

/// Requests that are refused, by connections that are kept.
async fn requests(port: u16) -> io::Result<()> {
    let body = refused_messages();
    let length = body.len();
    let refused = format!(
        "POST /faye HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}\
         GET /apps/1/channels HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    pour(connect(port).await?, refused.as_bytes()).await;
    Ok(())
}
