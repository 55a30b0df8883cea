//! One client, cut and moved at random, and gateways killed and started again at random. The seed is printed;
//! `SLUICEGATE_TEST_SEED` takes it.
use super::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const GATEWAYS: usize = 3;
/// Runs at a time.
const CLIENTS: usize = 10;
const TIME: Duration = Duration::from_secs(15);
/// How long a run may go on after that.
const REST: Duration = Duration::from_secs(20);
const WORDS: u64 = 60;

/// What the upstream says to this question, word by word.
fn words(question: &str) -> Vec<String> {
    (0..WORDS).map(|number| format!("{question}/{number} ")).collect()
}

/// A run as its client saw it, over all its connections.
#[derive(Debug, Default)]
struct Seen {
    run: String,
    /// The number of the next event.
    next: u64,
    text: String,
    /// `done`, or the code of the error.
    ended: Option<String>,
    connections: usize,
}

/// Connects, sends this, and reads events into what was seen, until the end of the connection or as many events as
/// there is patience for.
async fn read(place: SocketAddr, request: &str, events: usize, seen: &mut Seen) -> Result<u16, std::io::Error> {
    let mut stream = TcpStream::connect(place).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let end_of_head = loop {
        if let Some(at) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8(bytes.drain(..end_of_head).collect()).expect("a head");
    let status: u16 = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    if status != 200 {
        return Ok(status);
    }
    seen.connections += 1;
    let (mut lines, mut frame) = (String::new(), BTreeMap::<String, String>::new());
    let mut left = events;
    loop {
        // HTTP/1.0: the body is what comes until the close.
        let text = std::str::from_utf8(&bytes);
        let whole = text.map_or_else(|error| error.valid_up_to(), str::len);
        lines.push_str(std::str::from_utf8(&bytes[..whole]).expect("checked"));
        bytes.drain(..whole);
        while let Some(end) = lines.find('\n') {
            let line: String = lines.drain(..=end).collect();
            match line.trim_end_matches('\n') {
                "" => {
                    take(&std::mem::take(&mut frame), seen);
                    left -= 1;
                    if left == 0 || seen.ended.is_some() {
                        return Ok(200);
                    }
                }
                line => {
                    if let Some((name, value)) = line.split_once(": ") {
                        let old = frame.entry(name.to_owned()).or_default();
                        *old = match old.is_empty() {
                            true => value.to_owned(),
                            false => format!("{old}\n{value}"),
                        };
                    }
                }
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(200);
        }
    }
}

/// One more event: the very next one.
fn take(frame: &BTreeMap<String, String>, seen: &mut Seen) {
    assert!(seen.ended.is_none(), "{frame:?} after the end of {seen:?}");
    let (run, seq) = frame["id"].rsplit_once(':').expect("an id");
    if seen.run.is_empty() {
        seen.run = run.to_owned();
    }
    assert_eq!(
        (run, seq.parse()),
        (&*seen.run, Ok(seen.next)),
        "{frame:?} where another was due: {seen:?}"
    );
    seen.next += 1;
    match &*frame["event"] {
        "token" => seen.text.push_str(&frame["data"]),
        "done" => seen.ended = Some("done".to_owned()),
        "error" => {
            let chunk: Value = serde_json::from_str(&frame["data"]).expect("JSON");
            seen.ended = Some(chunk["error"]["code"].as_str().expect("a code").to_owned());
        }
        _ => {}
    }
}

/// Asks once, under a key, and stays with the run wherever it can be read, until it has ended.
async fn follow(question: String, places: Vec<SocketAddr>, seed: u64) -> (String, Seen) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = Seen::default();
    let body = json!({"message": question, "session_id": question, "on_disconnect": "continue"}).to_string();
    let deadline = Instant::now() + TIME + REST;
    while seen.ended.is_none() {
        assert!(Instant::now() < deadline, "{question} never ended: {seen:?}");
        let place = places[random.usize(..places.len())];
        let request = match seen.run.is_empty() {
            true => format!(
                "POST /chat/sse HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: {question}\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            false => format!(
                "GET /runs/{0}/events HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: {0}:{1}\r\n\r\n",
                seen.run,
                seen.next - 1
            ),
        };
        let events = random.usize(1..40);
        match within(
            Duration::from_secs(15),
            "a read",
            read(place, &request, events, &mut seen),
        )
        .await
        {
            // Cut, by itself or by a death.
            Ok(200) => {}
            // Not ready; or what was told is not known there yet, or the gateway that is to say so.
            Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(random.u64(5..50))).await,
            // Its gateway died between the commit and the relay: the result is there, and nothing more to read.
            Ok(410) => seen.ended = Some("lost".to_owned()),
            Ok(status) => panic!("{status} for {request}: {seen:?}"),
        }
    }
    (question, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_said_twice_whoever_dies() {
    let given = std::env::var("SLUICEGATE_TEST_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    eprintln!("SLUICEGATE_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let upstream = Upstream::answering(|request| {
        let pieces = words(&question(request));
        let pause = Duration::from_millis(25);
        let said = pieces
            .iter()
            .fold(Script::sse().role(), |script, piece| script.say(piece).sleep(pause));
        said.complete()
    })
    .await;
    let Some(mut fleet) = Fleet::of(GATEWAYS, &upstream, &[]).await else {
        return;
    };
    let places: Vec<SocketAddr> = fleet.iter().map(Place::addr).collect();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (places, over, mut random) = (places.clone(), over.clone(), random.fork());
            tokio::spawn(async move {
                let mut all = Vec::new();
                while !over.load(Relaxed) {
                    let question = format!("c{client}q{}", all.len());
                    all.push(follow(question, places.clone(), random.u64(..)).await);
                }
                all
            })
        })
        .collect();
    let (began, mut deaths) = (Instant::now(), 0);
    while began.elapsed() < TIME {
        tokio::time::sleep(Duration::from_millis(random.u64(500..1_500))).await;
        let gateway = &mut fleet.gateways[random.usize(..GATEWAYS)];
        gateway.kill9().await;
        deaths += 1;
        tokio::time::sleep(Duration::from_millis(random.u64(0..500))).await;
        gateway.restart().await;
    }
    over.store(true, Relaxed);
    let mut runs = Vec::new();
    for client in clients {
        let client = within(TIME + REST, "a client's last run", client).await;
        runs.extend(client.unwrap_or_else(|error| panic!("{error}; SLUICEGATE_TEST_SEED={seed}")));
    }
    let calls = upstream
        .requests()
        .iter()
        .map(question)
        .fold(HashMap::new(), |mut calls, question| {
            *calls.entry(question).or_insert(0) += 1;
            calls
        });
    let rows: Vec<(String, i64)> = sqlx::query_as("SELECT session_id, count(*) FROM runs GROUP BY session_id")
        .fetch_all(&mut fleet.database.look().await)
        .await
        .unwrap();
    let rows: HashMap<String, i64> = rows.into_iter().collect();
    let (mut done, mut moved) = (0, 0);
    for (question, seen) in &runs {
        moved += seen.connections - 1;
        let whole = words(question).concat();
        let kept = get(&fleet[0], &format!("/sessions/{question}/messages")).await;
        let kept = if kept.status == 404 {
            0
        } else {
            kept.json().await["messages"].as_array().unwrap().len()
        };
        match seen.ended.as_deref() {
            Some("done") => {
                done += 1;
                assert_eq!(
                    (&seen.text, seen.next),
                    (&whole, WORDS + 2),
                    "SLUICEGATE_TEST_SEED={seed}: {seen:?}"
                );
                assert_eq!(kept, 2, "{seen:?}");
            }
            // Of one that was taken for dead, and lives, the turn is not taken.
            Some("interrupted" | "shutting_down" | "session_busy") => {
                assert!(whole.starts_with(&seen.text), "SLUICEGATE_TEST_SEED={seed}: {seen:?}");
                assert_eq!(kept, 0, "{seen:?}");
            }
            Some("lost") => {
                let row = glance(&fleet[0], &seen.run).await;
                assert_eq!(
                    row["response"]["content"], whole,
                    "SLUICEGATE_TEST_SEED={seed}: {seen:?}"
                );
                assert_eq!(kept, 2, "{seen:?}");
            }
            _ => panic!("SLUICEGATE_TEST_SEED={seed}: {seen:?}"),
        }
        // A key whose run died before its id arrived starts another one: that is what it is for.
        let (calls, rows) = (calls.get(question).copied().unwrap_or_default(), rows[question]);
        assert!(
            calls <= rows,
            "SLUICEGATE_TEST_SEED={seed}: {calls} calls for {rows} runs: {seen:?}"
        );
    }
    eprintln!(
        "{} runs, {done} done, {moved} times moved, {deaths} deaths, {:?}",
        runs.len(),
        began.elapsed()
    );
    assert!(runs.len() >= CLIENTS && done > 0 && moved > runs.len() && deaths > 5);
}
