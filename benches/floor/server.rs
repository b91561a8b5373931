//! The floor: a server that does nothing but write frames that are encoded once, to compare others
//! with. It speaks as much of the Pusher protocol as `raptor bench fan-out` and `channels` need
//! and checks nothing; it is no server for anything else.
//!
//! `cargo run --release --example floor -- plain|coalescing`
//!
//! - plain: the thread that takes a publish writes it to one subscriber after the other, one system
//!   call for each delivery;
//! - coalescing: publishes of a channel gather while its writer is on its round, and each
//!   subscriber gets all of them with one system call.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// A coalescing channel lets its publishers wait while more is gathered.
const GATHERED_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Plain,
    Coalescing,
}

#[derive(Default)]
struct Channel {
    /// Behind a lock of its own: a round takes its time.
    sockets: Mutex<Vec<TcpStream>>,
    gathered: Mutex<Vec<u8>>,
    changed: Condvar,
}

struct Floor {
    form: Form,
    channels: Mutex<HashMap<String, Arc<Channel>>>,
}

fn main() {
    let form = match std::env::args().nth(1).as_deref() {
        Some("plain") => Form::Plain,
        Some("coalescing") => Form::Coalescing,
        _ => {
            eprintln!("usage: floor plain|coalescing");
            std::process::exit(2);
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    println!("listening on http://{address}");
    let floor = Arc::new(Floor {
        form,
        channels: Mutex::default(),
    });
    for stream in listener.incoming().flatten() {
        let floor = floor.clone();
        thread::spawn(move || floor.serve(stream));
    }
}

impl Floor {
    /// `None` when the peer is done.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(stream);
        loop {
            let (mut request, mut body_bytes) = (String::new(), 0);
            let mut line = String::new();
            loop {
                line.clear();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let lower = line.to_ascii_lowercase();
                if let Some(length) = lower.strip_prefix("content-length:") {
                    body_bytes = length.trim().parse().ok()?;
                }
                if line == "\r\n" {
                    break;
                }
                if request.is_empty() {
                    request.clone_from(&line);
                }
            }
            if request.starts_with("GET /app/") {
                return self.subscribe(reader);
            }
            let mut body = vec![0; body_bytes];
            reader.read_exact(&mut body).ok()?;
            self.publish(std::str::from_utf8(&body).ok()?)?;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            reader.get_mut().write_all(answer).ok()?;
        }
    }

    /// The thread ends once the socket is in its channel: nothing more is read from it.
    fn subscribe(&self, mut reader: BufReader<TcpStream>) -> Option<()> {
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        let hello = r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.1\",\"activity_timeout\":120}"}"#;
        let mut bytes = head.as_bytes().to_vec();
        push_frame(&mut bytes, hello);
        reader.get_mut().write_all(&bytes).ok()?;

        let mut start = [0; 2];
        reader.read_exact(&mut start).ok()?;
        let payload_bytes = match start[1] & 0x7F {
            126 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length).ok()?;
                u16::from_be_bytes(length)
            }
            short => u16::from(short),
        };
        let mut rest = vec![0; 4 + usize::from(payload_bytes)];
        reader.read_exact(&mut rest).ok()?;
        let (mask, payload) = rest.split_at_mut(4);
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        let name = member(std::str::from_utf8(payload).ok()?, "channel")?;
        let answer = format!(
            r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{name}","data":"{{}}"}}"#
        );
        let mut bytes = Vec::new();
        push_frame(&mut bytes, &answer);
        let mut stream = reader.into_inner();
        stream.write_all(&bytes).ok()?;
        self.channel(name).sockets.lock().ok()?.push(stream);
        Some(())
    }

    fn publish(&self, body: &str) -> Option<()> {
        let (name, data) = (member(body, "channel")?, member(body, "data")?);
        let mut frame = Vec::new();
        let text = format!(r#"{{"event":"bench","channel":"{name}","data":"{data}"}}"#);
        push_frame(&mut frame, &text);
        let channel = self.channel(name);
        match self.form {
            Form::Plain => write_to_all(&channel, &frame),
            Form::Coalescing => {
                let gathered = channel.gathered.lock().ok()?;
                let is_full = |gathered: &mut Vec<u8>| gathered.len() > GATHERED_BYTES_MAX;
                let mut gathered = channel.changed.wait_while(gathered, is_full).ok()?;
                gathered.extend_from_slice(&frame);
                channel.changed.notify_all();
            }
        }
        Some(())
    }

    fn channel(&self, name: &str) -> Arc<Channel> {
        let mut channels = self.channels.lock().expect("nobody panics");
        if let Some(channel) = channels.get(name) {
            return channel.clone();
        }
        let channel = Arc::new(Channel::default());
        channels.insert(name.to_owned(), channel.clone());
        if self.form == Form::Coalescing {
            let channel = channel.clone();
            thread::spawn(move || write_rounds(&channel));
        }
        channel
    }
}

fn write_to_all(channel: &Channel, bytes: &[u8]) {
    let mut sockets = channel.sockets.lock().expect("nobody panics");
    sockets.retain_mut(|socket| socket.write_all(bytes).is_ok());
}

fn write_rounds(channel: &Channel) {
    loop {
        let gathered = channel.gathered.lock().expect("nobody panics");
        let waiting = channel.changed.wait_while(gathered, |g| g.is_empty());
        let bytes = std::mem::take(&mut *waiting.expect("nobody panics"));
        channel.changed.notify_all();
        write_to_all(channel, &bytes);
    }
}

/// A text member of a JSON text whose texts need no escapes.
fn member<'t>(json: &'t str, name: &str) -> Option<&'t str> {
    let (_, after) = json.split_once(&format!(r#""{name}":""#))?;
    Some(after.split_once('"')?.0)
}

fn push_frame(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(0x81);
    match text.len() {
        short @ 0..126 => bytes.push(short as u8),
        length => {
            bytes.push(126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(text.as_bytes());
}
