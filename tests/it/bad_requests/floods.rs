//! What only HTTP/2 can say wrong: frames by the ten thousand, and heads that are none.
use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::house::{PATIENCE, Task, within};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &u32::try_from(payload.len()).unwrap().to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:method`, `:scheme http`, `:path`, `:authority`, spelled out.
fn fields(method: &str, path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![0x86];
    for (name, value) in [(2, method), (4, path), (1, authority)] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

/// One more field, its name spelled out too.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// How a connection of HTTP/2 opens.
fn opening() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The kinds of the frames in these bytes, each with its stream.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut kinds = Vec::new();
    while let Some(head) = bytes.first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        kinds.push((head[3], stream));
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    kinds
}

/// Whether they say that the connection ends.
fn goes_away(bytes: &[u8]) -> bool {
    kinds(bytes).iter().any(|(kind, _)| *kind == GOAWAY)
}

/// Frames by the thousand, after the opening of a connection.
struct Flood {
    what: &'static str,
    frames: Vec<u8>,
    /// Whether the connection has to end; other floods are answered frame by frame, as the protocol has it.
    ends: Ends,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    Must,
    May,
}

fn floods() -> Vec<Flood> {
    let ask = |stream: u32, flags: u8| {
        // Refused, if it gets as far as that.
        frame(
            HEADERS,
            flags,
            stream,
            &fields("GET", "/chat/sse?message=Hi&x=1", "localhost"),
        )
    };
    let streams = |count: u32| (0..count).map(|n| 2 * n + 1);
    let mut post = fields("POST", "/chat", "localhost");
    post.extend(field("content-type", "application/json"));
    let posted = frame(HEADERS, 0x4, 1, &post);
    let more = frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(100)));
    let flood = |what, ends, frames: Vec<Vec<u8>>| Flood {
        what,
        frames: frames.concat(),
        ends,
    };
    let reset = |stream| [ask(stream, 0x5), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat();
    let reset_by_us = |stream| [ask(stream, 0x4), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat();
    let window = |n: u32| frame(SETTINGS, 0, 0, &[&[0, 4][..], &(n % 2 + 1).to_be_bytes()].concat());
    vec![
        flood("rapid reset", Ends::Must, streams(10_000).map(reset).collect()),
        flood(
            "resets that it is made to send",
            Ends::Must,
            streams(10_000).map(reset_by_us).collect(),
        ),
        flood(
            "streams that stay open",
            Ends::May,
            streams(10_000).map(|stream| ask(stream, 0x4)).collect(),
        ),
        flood(
            "headers without end",
            Ends::Must,
            vec![ask(1, 0x1), more.repeat(10_000)],
        ),
        flood(
            "continuations of nothing",
            Ends::Must,
            vec![ask(1, 0x1), frame(CONTINUATION, 0, 1, &[]).repeat(100_000)],
        ),
        flood(
            "data of nothing",
            Ends::May,
            vec![posted.clone(), frame(DATA, 0, 1, &[]).repeat(100_000)],
        ),
        flood(
            "data of padding",
            Ends::May,
            vec![
                posted,
                frame(DATA, 0x8, 1, &[&[254][..], &[0; 254]].concat()).repeat(10_000),
            ],
        ),
        flood("settings", Ends::May, vec![frame(SETTINGS, 0, 0, &[]).repeat(100_000)]),
        flood("windows that change", Ends::May, (0..20_000).map(window).collect()),
        flood("pings", Ends::May, vec![frame(PING, 0, 0, &[7; 8]).repeat(100_000)]),
        flood(
            "priorities",
            Ends::May,
            vec![frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]).repeat(100_000)],
        ),
        flood(
            "frames of no kind",
            Ends::May,
            vec![frame(0xbe, 0, 0, &[0; 8]).repeat(100_000)],
        ),
    ]
}

/// Whether the client of a flood takes what it is sent.
#[derive(Clone, Copy, Debug)]
enum Client {
    Reads,
    IsDeaf,
}

/// Sends it, from a connection of its own; gives that, with what was read, when all was sent or could not be.
async fn send_flood(place: SocketAddr, flood: &Flood, client: Client) -> (TcpStream, Vec<u8>, bool) {
    let mut stream = soon("a connection", TcpStream::connect(place)).await.unwrap();
    let sent = [opening(), flood.frames.clone()].concat();
    let (mut from, mut to) = stream.split();
    let mut bytes = Vec::new();
    // Who must end it does so when it has worked through what was sent.
    let patience = match flood.ends {
        Ends::Must => PATIENCE,
        Ends::May => Duration::from_secs(2),
    };
    // A peer that reads no more, because it has closed or because nobody takes its answers, is as good as one who says so.
    let (written, gone) = (Cell::new(false), Cell::new(false));
    let write = async {
        drop(tokio::time::timeout(Duration::from_secs(3), to.write_all(&sent)).await);
        written.set(true);
    };
    let ended = match client {
        Client::IsDeaf => {
            write.await;
            false
        }
        Client::Reads => {
            let read = async {
                loop {
                    match from.read_buf(&mut bytes).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => gone.set(flood.ends == Ends::Must && goes_away(&bytes)),
                    }
                    if written.get() && gone.get() {
                        return;
                    }
                }
            };
            tokio::pin!(read);
            tokio::select! {
                () = write => gone.get() || tokio::time::timeout(patience, read).await.is_ok(),
                () = &mut read => true,
            }
        }
    };
    (stream, bytes, ended)
}

/// What the program has of memory of its own, in MiB.
pub(super) fn memory(program: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a kernel that tells");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1024.0
}

#[tokio::test]
async fn floods_of_http2_frames_cost_their_connection_and_nothing_else() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let program = Gateway::with(&upstream).spawn().await;
    let place = program.addr();
    let mut failed = Vec::new();
    for flood in floods() {
        let before = memory(&program);
        for client in [Client::Reads, Client::IsDeaf] {
            // Somebody else is served meanwhile, each time.
            let (served, ask) = tokio::sync::oneshot::channel();
            let somebody_else = Task::spawn(async move {
                for _ in 0..5 {
                    drop(get(&place, "/healthz").await.expect(200).await);
                }
                let _ = served.send(()); // the story waits for it
            });
            let (stream, bytes, ended) = send_flood(place, &flood, client).await;
            soon(format_args!("somebody else to be served during {}", flood.what), ask)
                .await
                .unwrap();
            drop(somebody_else);
            let after = memory(&program);
            let told = goes_away(&bytes);
            println!(
                "{} ({client:?}): {before:.1} -> {after:.1} MiB, GOAWAY {told}, ended {ended}",
                flood.what
            );
            if matches!(client, Client::Reads) && flood.ends == Ends::Must && !(told || ended) {
                failed.push(format!("{} goes on: {:?}", flood.what, kinds(&bytes).last()));
            }
            if after > before + 16.0 {
                failed.push(format!(
                    "{} ({client:?}): from {before:.1} to {after:.1} MiB",
                    flood.what
                ));
            }
            drop(stream);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(!program.log().contains("panicked"), "{}", program.log());
    nothing_happened(&upstream, &program, program.folder()).await;
}

/// Heads that HTTP/2 calls malformed (RFC 9113, § 8), each with what is wrong about it.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let good = || fields("POST", "/chat", "localhost");
    let with = |name: &str, value: &str| [good(), field(name, value)].concat();
    vec![
        ("a name in capitals", with("X-A", "1")),
        ("a name that is no token", with("x a", "1")),
        ("NUL in a value", with("x-a", "a\0b")),
        ("a line end in a value", with("x-a", "a\r\nx-b: 1")),
        ("NUL in the last event id", with("last-event-id", "a\0")),
        ("a connection header", with("connection", "keep-alive")),
        ("a transfer coding", with("transfer-encoding", "chunked")),
        ("an upgrade", with("upgrade", "websocket")),
        (
            "two lengths",
            [with("content-length", "1"), field("content-length", "2")].concat(),
        ),
        ("a length that is none", with("content-length", "-1")),
        ("no path", [&[0x86, 2, 3][..], b"GET"].concat()),
        ("an empty path", fields("GET", "", "localhost")),
        (
            "two methods",
            [&[2, 3][..], b"GET", &fields("POST", "/chat", "localhost")].concat(),
        ),
        ("a status", with(":status", "200")),
        (
            "a pseudo-header after a header",
            [with("x-a", "1"), field(":path", "/")].concat(),
        ),
        ("an unknown pseudo-header", [field(":x", "1"), good()].concat()),
    ]
}

#[tokio::test]
async fn heads_that_are_malformed_end_their_stream_before_anything_runs() {
    let (upstream, gateway) = house().await;
    let whole_but_short = [fields("POST", "/chat", "localhost"), field("content-length", "100")].concat();
    let mut asks: Vec<(&str, Vec<u8>)> = malformed()
        .into_iter()
        .map(|(what, head)| (what, frame(HEADERS, 0x5, 1, &head)))
        .collect();
    let data =
        |flags: u8, bytes: &[u8]| [frame(HEADERS, 0x4, 1, &whole_but_short), frame(DATA, flags, 1, bytes)].concat();
    asks.push(("B026 a body that ends before its length", data(1, b"{\"message\":")));
    asks.push(("a body that goes on after its length", data(1, &[b' '; 200])));
    asks.push((
        "an even stream",
        frame(HEADERS, 0x5, 2, &fields("GET", "/agents", "localhost")),
    ));
    asks.push(("data of no stream", frame(DATA, 1, 1, b"x")));
    asks.push(("a frame longer than allowed", frame(DATA, 1, 1, &vec![0; 100_000])));
    asks.push(("a head that cannot be unpacked", frame(HEADERS, 0x5, 1, &[0xff; 40])));
    for (what, ask) in asks {
        let mut stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
        stream.write_all(&[opening(), ask].concat()).await.unwrap();
        let mut bytes = Vec::new();
        let refused = within(Duration::from_secs(5), format!("{what} to be refused"), async {
            loop {
                // By the end of the stream or of the connection, or in a problem object.
                let told = kinds(&bytes);
                let object = memchr::memmem::find(&bytes, b"\"status\":4").is_some();
                if object || told.iter().any(|(kind, _)| matches!(*kind, RST_STREAM | GOAWAY)) {
                    return told;
                }
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return told;
                }
            }
        });
        let told = refused.await;
        assert!(!String::from_utf8_lossy(&bytes).contains("run_id"), "{what}: {told:?}");
    }
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}

#[tokio::test]
async fn over_http2_the_authority_is_the_host() {
    let (upstream, gateway) = house().await;
    for (authority, answer) in [
        ("evil.example", "host_not_allowed"),
        ("localhost.evil.example:80", "host_not_allowed"),
        ("localhost", "agents"),
    ] {
        let mut stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
        let ask = frame(HEADERS, 0x5, 1, &fields("GET", "/agents", authority));
        stream.write_all(&[opening(), ask].concat()).await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.windows(answer.len()).any(|part| part == answer.as_bytes()) {
            let read = soon(format_args!("{answer} for {authority}"), stream.read_buf(&mut bytes)).await;
            assert!(read.unwrap() > 0, "closed before {answer} for {authority}");
        }
    }
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}
