//! What can happen to the process and to the machine under it (FAULTS § 2.6), with the real program: locks, full and broken
//! disks, clocks that jump, too little memory, too few file descriptors, a log that nobody reads. What needs the machine's
//! consent is skipped, loudly, where it refuses; with `SLUICEGATE_TEST_HOST` set that is a failure.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection as _};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::house::*;

const DOORS: [&str; 3] = ["/chat", "/chat/stream", "/chat/sse"];

/// The answer of a program that has seen that it is not ready: what it found is good for a second.
async fn not_ready(program: &Process) -> Response {
    eventually("/readyz to see it", async || {
        let ready = get(program, "/readyz").await;
        (ready.status == 503).then_some(ready)
    })
    .await
}

/// What the machine gave; or why it did not, which is a failure where it was promised to.
fn granted<T>(what: &str, outcome: Result<T, String>) -> Option<T> {
    match outcome {
        Ok(given) => Some(given),
        Err(why) => {
            let promised = std::env::var_os("SLUICEGATE_TEST_HOST").is_some();
            assert!(!promised, "{what}: {why}, and SLUICEGATE_TEST_HOST is set");
            eprintln!("!!! SKIPPED: {what}: {why}");
            None
        }
    }
}

/// The program with this upstream and further settings, as `("RUNS__DRAIN", "1s")`; a name with a `=` before it is a
/// variable as it stands.
async fn program(upstream: &Upstream, settings: &[(&str, &str)]) -> Process {
    let base_url = upstream.base_url();
    let usual = [
        ("=OPENAI_API_KEY", "test-key"),
        ("=OPENAI_BASE_URL", &base_url),
        ("=SLUICEGATE_MODEL", "openai/test-model"),
    ];
    let named: Vec<_> = usual
        .iter()
        .chain(settings)
        .map(|(name, value)| match name.strip_prefix('=') {
            Some(name) => (name.to_owned(), *value),
            None => (format!("SLUICEGATE__{name}"), *value),
        })
        .collect();
    let env: Vec<_> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    Process::start(&env, &[]).await
}

/// An upstream that says "Hel", stands at the gate, and says "lo"; what is not "Hold" is answered at once.
async fn holding(gate: &Gate) -> Upstream {
    let held = Script::sse().role().say("Hel").wait(gate).say("lo").complete();
    Upstream::answering(
        move |request| match request.body.windows(6).any(|word| word == b"\"Hold\"") {
            true => held.clone(),
            false => openai::answer(&["Yes"]),
        },
    )
    .await
}

fn body(message: &str, session: &str) -> Value {
    json!({"message": message, "session_id": session})
}

/// A turn that works.
async fn turn(place: &impl Place, session: &str) {
    let answer = post(place, "/chat", body("Hi", session)).await.expect(200).await;
    assert_eq!(answer.json().await["content"], "Yes");
}

/// Every door refuses a new run because of the store, within this time and before the model is asked.
async fn refused_by_the_store(program: &Process, upstream: &Upstream, within: Duration) {
    let (before, began) = (upstream.calls(), Instant::now());
    let tell = async |(number, door): (usize, &str)| {
        let connection = Connection::open(program).await.patience(within + PATIENCE);
        let call = Call::post(door).json(&body("Hi", &format!("refused-{number}")));
        let answer = connection.call(call).await.expect(503).await;
        assert_eq!(answer.header("retry-after"), "1", "{door}");
        assert_eq!(answer.problem().await, "store_unavailable", "{door}");
    };
    join_all(DOORS.into_iter().enumerate().map(tell)).await;
    assert!(began.elapsed() < within, "after {:?}", began.elapsed());
    assert_eq!(
        upstream.calls(),
        before,
        "the model was asked for a turn that cannot be kept"
    );
}

/// The file, if it is sound: `PRAGMA integrity_check`.
async fn sound(file: &Path) -> SqliteConnection {
    let mut db = look(file).await;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(sound, "ok");
    db
}

async fn look(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file);
    options.connect().await.expect("a file that can be opened")
}

fn store(program: &Process) -> PathBuf {
    program.folder().join("data/sluicegate.db")
}

/// Three runs that have said "Hel" and go on: JSON, text and events.
struct Open {
    whole: tokio::task::JoinHandle<Response>,
    text: Response,
    events: Response,
}

impl Open {
    async fn begin(program: &Process, gate: &Gate) -> Self {
        let place = program.addr();
        let whole = tokio::spawn(async move {
            let connection = Connection::open(&place).await.patience(Duration::from_secs(70));
            connection
                .call(Call::post("/chat").json(&body("Hold", "open-json")))
                .await
        });
        let mut text = post(program, "/chat/stream", body("Hold", "open-text"))
            .await
            .expect(200)
            .await;
        assert_eq!(text.next_bytes().await.unwrap(), "Hel");
        let mut events = post(program, "/chat/sse", body("Hold", "open-events"))
            .await
            .expect(200)
            .await;
        events.next_event_named("token").await;
        gate.reached_by(3).await;
        Self { whole, text, events }
    }

    /// None of them is told that it is complete.
    async fn end_unkept(self) {
        let patience = PATIENCE * 3;
        let (whole, text, events) = tokio::join!(
            self.whole,
            self.text.patience(patience).body(),
            self.events.patience(patience).transcript()
        );
        assert_eq!(whole.unwrap().expect(503).await.problem().await, "store_unavailable");
        assert!(text.ending.is_aborted(), "a text that is not kept looks whole");
        assert_eq!(events.codes(), ["store_unavailable"]);
    }

    /// What each of them is told is what is kept: a turn, or nothing. Says how many were.
    async fn end_as_kept(self, program: &Process) -> usize {
        let patience = Duration::from_secs(70);
        let (whole, text, events) = tokio::join!(
            within(patience, "the end of a run", self.whole),
            self.text.patience(patience).body(),
            self.events.patience(patience).transcript()
        );
        let whole = whole.unwrap();
        let told = [
            ("open-json", whole.status == 200),
            ("open-text", text.ending == Ending::Complete),
            ("open-events", events.terminal().event == "done"),
        ];
        for (session, complete) in told {
            let kept = get(program, &format!("/sessions/{session}")).await.expect(200).await;
            let kept = kept.json().await["message_count"] == 2;
            assert_eq!(complete, kept, "{session}");
        }
        told.iter().filter(|(_, complete)| *complete).count()
    }

    async fn end_well(self) {
        let (whole, text, events) = tokio::join!(self.whole, self.text.body(), self.events.transcript());
        assert_eq!(whole.unwrap().expect(200).await.json().await["content"], "Hello");
        assert_eq!((text.text(), &text.ending), ("lo", &Ending::Complete));
        assert_eq!(events.done()["response"]["content"], "Hello");
    }
}

mod killed {
    use super::*;

    /// S01: through every door, before the model has said a word.
    #[tokio::test]
    async fn before_the_first_token_nobody_is_told_anything_but_that_it_was_interrupted() {
        let gate = Gate::new("the head");
        let held = Script::raw().wait(&gate);
        let upstream =
            Upstream::answering(
                move |request| match request.body.windows(6).any(|word| word == b"\"Hold\"") {
                    true => held.clone(),
                    false => openai::answer(&["Yes"]),
                },
            )
            .await;
        let mut program = program(&upstream, &[]).await;
        let place = program.addr();
        let waiting = |door: &'static str, session: &'static str| {
            tokio::spawn(async move {
                let wire = body("Hold", session).to_string();
                let mut connection = Connection::open(&place).await;
                let head = format!(
                    "POST {door} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    wire.len()
                );
                connection.send_raw(head + &wire).await;
                connection.try_answer(door).await.expect_err("an end without a word")
            })
        };
        let (whole, text) = (waiting("/chat", "json"), waiting("/chat/stream", "text"));
        let mut events = post(&program, "/chat/sse", body("Hold", "events")).await;
        let start = events.next_event().await;
        gate.reached_by(3).await;
        program.kill9().await;
        for answer in [whole, text] {
            soon("the end of a connection", answer).await.unwrap();
        }
        assert_eq!(events.transcript().await.ended, Ended::Aborted);
        program.restart().await;
        let back = Call::get("/chat/sse?message=Hold")
            .header("Last-Event-ID", &start.id)
            .to(&program)
            .await;
        assert_eq!(back.expect(200).await.transcript().await.codes(), ["interrupted"]);
        let mut file = sound(&store(&program)).await;
        let runs: Vec<(String, String)> = sqlx::query_as("SELECT session_id, status FROM runs ORDER BY session_id")
            .fetch_all(&mut file)
            .await
            .unwrap();
        let interrupted = ["events", "json", "text"].map(|session| (session.to_owned(), "interrupted".to_owned()));
        assert_eq!(runs, interrupted);
        let counted = Meters::of(&program.admin().await).await;
        assert_eq!(counted.get("recovered_runs_total"), 3.0);
        assert_eq!(upstream.calls(), 3, "a resume asked the model");
        for session in ["events", "json", "text"] {
            turn(&program, session).await;
        }
    }
}

/// S05.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_two_hundred_streams_come_to_one_end_each() {
    let gate = Gate::new("after the signal");
    let upstream = Upstream::answering({
        let gate = gate.clone();
        move |request| match request.number % 2 {
            0 => Script::sse().role().say("Hel").wait(&gate).say("lo").complete(),
            _ => Script::sse().role().say("Hel").hang(),
        }
    })
    .await;
    let mut program = program(&upstream, &[("RUNS__DRAIN", "8s")]).await;
    let opened = join_all((0..200).map(|number| {
        let program = &program;
        async move {
            let mut stream = post(program, "/chat/sse", body("Hold", &format!("s{number}")))
                .await
                .expect(200)
                .await;
            stream.next_event_named("token").await;
            stream
        }
    }));
    let streams = opened.await;
    gate.reached_by(100).await;
    let told = Instant::now();
    program.terminate().await;
    program.logged("stopping").await;
    gate.open();
    let ends = join_all(
        streams
            .into_iter()
            .map(|stream| stream.patience(PATIENCE * 2).transcript()),
    )
    .await;
    let done = ends.iter().filter(|end| end.terminal().event == "done").count();
    let interrupted = ends.iter().filter(|end| end.codes() == ["shutting_down"]).count();
    assert_eq!((done, interrupted), (100, 100));
    assert!(ends.iter().all(|end| end.ended == Ended::Eof));
    assert_eq!(program.wait_exit(Duration::from_secs(20)).await.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(25), "{:?}", told.elapsed());
    let mut file = sound(&store(&program)).await;
    let by_status = "SELECT status, count(*) FROM runs GROUP BY status ORDER BY status";
    let by_status: Vec<(String, i64)> = sqlx::query_as(by_status).fetch_all(&mut file).await.unwrap();
    assert_eq!(
        by_status,
        [("completed".to_owned(), 100), ("interrupted".to_owned(), 100)]
    );
}

/// P21: whatever hangs, what comes after the drain takes little more than 4 s: a reader that takes nothing, a run without an
/// end, a server of tools that takes no notice, a collector that never answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_does_in_time_whatever_hangs() {
    prompt(Duration::from_millis(5_900), async || {
        let piece = "x".repeat(64 << 10);
        let script = (0..32)
            .fold(Script::sse().role(), |script, _| script.say(&piece))
            .hang();
        let upstream = Upstream::always(script).await;
        let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let settings = [
            ("RUNS__DRAIN", "1s"),
            ("LOG__OTLP_ENDPOINT", &endpoint),
            ("MCP__DEAF__COMMAND", "/bin/sh"),
            ("MCP__DEAF__ARGS", "-c,trap '' TERM; while :; do sleep 1; done"),
        ];
        let mut program = program(&upstream, &settings).await;
        let mut streams = Vec::new();
        for number in 0..4 {
            let stream = post(&program, "/chat/sse", body("Hi", &format!("s{number}"))).await;
            streams.push(stream.expect(200).await);
        }
        for stream in &mut streams {
            stream.next_event_named("token").await; // and nothing after it
        }
        let told = Instant::now();
        program.terminate().await;
        assert_eq!(program.wait_exit(Duration::from_secs(20)).await.code(), Some(0));
        let took = told.elapsed();
        drop(sound(&store(&program)).await);
        took
    })
    .await;
}

/// S06: 5 s are waited for a lock, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_somebody_else_locks_is_said_so_before_the_model_is_asked_and_no_turn_is_passed_for_kept() {
    let gate = Gate::new("the end");
    let upstream = holding(&gate).await;
    let program = program(&upstream, &[]).await;
    turn(&program, "s").await;
    let open = Open::begin(&program, &gate).await;
    let mut other = look(&store(&program)).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let ready = async {
        let ready = not_ready(&program).await;
        assert_eq!(ready.problem().await, "store_unavailable");
        // What can be read is read.
        assert_eq!(
            get(&program, "/sessions/s").await.expect(200).await.json().await["message_count"],
            2
        );
    };
    tokio::join!(refused_by_the_store(&program, &upstream, Duration::from_secs(8)), ready);
    let admin = program.admin().await;
    assert_eq!(Meters::of(&admin).await.get("store_up"), 0.0);
    gate.open();
    open.end_unkept().await;
    let committed = program.log().matches("committed=true").count();
    assert_eq!(committed, 1, "the first turn's: {}", program.log());
    let counted = Meters::of(&admin).await;
    assert!(counted.sum("store_errors_total") >= 3.0, "{}", counted.text());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    eventually("readiness", async || {
        (get(&program, "/readyz").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(Meters::of(&admin).await.get("store_up"), 1.0);
    for session in ["s", "open-json", "open-text", "open-events"] {
        turn(&program, session).await;
    }
    let mut file = sound(&store(&program)).await;
    let messages: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM messages GROUP BY session_id ORDER BY session_id")
            .fetch_all(&mut file)
            .await
            .unwrap();
    assert_eq!(messages, [2, 2, 2, 4], "a turn that was not acknowledged was kept");
}

/// A small disk of the story's own, in memory; gone when it is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    async fn mount(size: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "sluicegate-test"])
            .arg(folder.path());
        let output = mount.output().await.map_err(|error| format!("mount: {error}"))?;
        match output.status.success() {
            true => Ok(Self(folder)),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Leaves no room on it.
    fn fill(&self) {
        use std::io::Write;
        let mut ballast = std::fs::File::create(self.file("ballast")).expect("a file");
        while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.file("ballast")).expect("a file");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the program may be on its way out.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

/// S07.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_runs_keeps_no_half_turn_and_is_found_again_when_there_is_room() {
    let Some(disk) = granted("a disk of 8 MiB", Disk::mount("8m").await) else {
        return;
    };
    let (gate, file) = (Gate::new("the end"), disk.file("sluicegate.db"));
    let upstream = holding(&gate).await;
    let url = format!("sqlite://{}", file.display());
    let program = program(&upstream, &[("STORE__URL", &url)]).await;
    turn(&program, "s").await;
    let open = Open::begin(&program, &gate).await;
    disk.fill();
    let ready = not_ready(&program).await;
    assert_eq!(ready.problem().await, "store_unavailable");
    refused_by_the_store(&program, &upstream, Duration::from_secs(5)).await;
    get(&program, "/healthz").await.expect(200).await;
    gate.open();
    open.end_unkept().await;
    disk.empty();
    eventually("readiness", async || {
        (get(&program, "/readyz").await.status == 200).then_some(())
    })
    .await;
    for session in ["s", "open-json", "open-text", "open-events"] {
        turn(&program, session).await;
    }
    let mut file = sound(&file).await;
    let messages: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM messages GROUP BY session_id ORDER BY session_id")
            .fetch_all(&mut file)
            .await
            .unwrap();
    assert_eq!(messages, [2, 2, 2, 4], "half a turn, or one that was not acknowledged");
}

/// System calls of a program, made to fail or to take their time; it goes on as before when this is stopped.
struct Strace {
    child: Child,
    _reader: Task,
}

impl Strace {
    async fn on(program: &Process, calls: &str, what: &str) -> Result<Self, String> {
        let mut strace = Command::new("strace");
        strace.args([
            "-f",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={calls}"),
            "-e",
            &format!("inject={calls}:{what}"),
        ]);
        strace
            .args(["-p", &program.pid().to_string()])
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = strace.spawn().map_err(|error| format!("strace: {error}"))?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let said = soon("strace to attach", lines.next_line())
            .await
            .ok()
            .flatten()
            .unwrap_or_default();
        // It goes on telling of threads; nobody may make it wait.
        let reader = Task::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        match said.contains("attached") {
            true => Ok(Self { child, _reader: reader }),
            false => Err(said),
        }
    }

    async fn stop(mut self) {
        signal("TERM", self.child.id().expect("a running strace")).await;
        soon("strace to let go", self.child.wait()).await.expect("a child");
    }
}

/// S08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_or_cannot_be_written_to_is_said_so_and_nothing_is_lost() {
    for error in ["EIO", "EROFS"] {
        let gate = Gate::new("the end");
        let upstream = holding(&gate).await;
        let mut program = program(&upstream, &[]).await;
        turn(&program, "s").await;
        let open = Open::begin(&program, &gate).await;
        // The log goes through write; the database's file through these.
        let calls = "pwrite64,pwritev,fsync,fdatasync";
        let injected = Strace::on(&program, calls, &format!("error={error}")).await;
        let Some(strace) = granted("system calls that fail", injected) else {
            return;
        };
        let ready = not_ready(&program).await;
        assert_eq!(ready.problem().await, "store_unavailable");
        refused_by_the_store(&program, &upstream, Duration::from_secs(10)).await;
        gate.open();
        open.end_unkept().await;
        strace.stop().await;
        eventually("readiness", async || {
            (get(&program, "/readyz").await.status == 200).then_some(())
        })
        .await;
        for session in ["s", "open-json"] {
            turn(&program, session).await;
        }
        program.kill9().await;
        program.restart().await;
        turn(&program, "s").await;
        drop(sound(&store(&program)).await);
        let session = get(&program, "/sessions/s").await.expect(200).await.json().await;
        assert_eq!(session["message_count"], 6, "{error}");
    }
}

/// S09.
#[tokio::test]
async fn a_file_that_is_no_database_of_ours_stops_the_start_and_is_left_alone() {
    let upstream = Upstream::always(openai::answer(&["Yes"])).await;
    let mut first = program(&upstream, &[]).await;
    let long = "x".repeat(20_000);
    for number in 0..20 {
        post(
            &first,
            "/chat",
            json!({"message": long, "session_id": format!("s{number}")}),
        )
        .await
        .expect(200)
        .await;
    }
    first.terminate().await;
    assert!(first.wait_exit(Duration::from_secs(5)).await.success());
    // Who was stopped in order leaves one file, with everything in it.
    assert!(!first.folder().join("data/sluicegate.db-wal").exists());
    let whole = std::fs::read(store(&first)).unwrap();
    let newer = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sluicegate.db");
        std::fs::write(&path, &whole).unwrap();
        let mut db = look(&path).await;
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)";
        sqlx::query(later).execute(&mut db).await.unwrap();
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut db)
            .await
            .unwrap();
        db.close().await.unwrap();
        std::fs::read(&path).unwrap()
    };
    // Of another journal, one that is not our log.
    let rolled_back = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[18..20].fill(1);
        bytes
    };
    let foreign = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut db = options.connect().await.unwrap();
        sqlx::query("CREATE TABLE mine (words TEXT)")
            .execute(&mut db)
            .await
            .unwrap();
        db.close().await.unwrap();
        std::fs::read(&path).unwrap()
    };
    let half = whole[..whole.len() / 2].to_vec();
    let header = [b"SQLite format 3\0".as_slice(), &[0xA5; 8_000]].concat();
    for (what, bytes) in [
        ("half", half),
        ("garbage", b"no database ".repeat(500)),
        ("a header and garbage", header),
        ("a newer one with another journal", rolled_back(&newer)),
        ("a newer one", newer),
        ("another program's", foreign),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/sluicegate.db");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        command
            .current_dir(folder.path())
            .env_clear()
            .env("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:0")
            .kill_on_drop(true);
        let output = soon(format!("a start with {what} to fail"), command.output())
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}");
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("sluicegate: ") && last.contains("sluicegate.db"),
            "{what}: {said}"
        );
        assert!(std::fs::read(&path).unwrap() == bytes, "{what}: the file was changed");
        for ending in ["-wal", "-shm", "-journal"] {
            let beside = folder.path().join(format!("data/sluicegate.db{ending}"));
            assert!(!beside.exists(), "{what}: {} was made", beside.display());
        }
    }
}

/// Whoever removes the files, or puts others in their place, is not served as if they were kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_removed_while_it_is_open_is_said_so_and_no_turn_is_passed_for_kept() {
    for log_only in [false, true] {
        let gate = Gate::new("the end");
        let upstream = holding(&gate).await;
        let program = program(&upstream, &[]).await;
        turn(&program, "s").await;
        let open = Open::begin(&program, &gate).await;
        let file = store(&program);
        let beside = |ending: &str| PathBuf::from(format!("{}{ending}", file.display()));
        if !log_only {
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, "").unwrap();
        }
        std::fs::remove_file(beside("-wal")).unwrap();
        let ready = not_ready(&program).await;
        assert_eq!(ready.problem().await, "store_unavailable");
        refused_by_the_store(&program, &upstream, Duration::from_secs(5)).await;
        gate.open();
        open.end_unkept().await;
        get(&program, "/healthz").await.expect(200).await;
    }
}

/// Whoever cuts the files, as a shell's `>` does, leaves a file of the same name and number without what was written to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_cut_while_it_is_open_is_said_so_and_no_turn_is_passed_for_kept() {
    for (ending, length) in [("", 0), ("-wal", 0)] {
        let gate = Gate::new("the end");
        let upstream = holding(&gate).await;
        let program = program(&upstream, &[]).await;
        turn(&program, "s").await;
        let open = Open::begin(&program, &gate).await;
        if ending.is_empty() {
            // What is in the log alone is not in the file yet, and cannot be cut off it.
            let mut db = look(&store(&program)).await;
            sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
                .execute(&mut db)
                .await
                .unwrap();
        }
        get(&program, "/readyz").await.expect(200).await;
        let file = PathBuf::from(format!("{}{ending}", store(&program).display()));
        std::fs::File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(length)
            .unwrap();
        gate.open();
        open.end_unkept().await;
        assert_eq!(not_ready(&program).await.problem().await, "store_unavailable");
        refused_by_the_store(&program, &upstream, Duration::from_secs(5)).await;
        get(&program, "/healthz").await.expect(200).await;
    }
}

/// A limit of a file's size is an error like a full disk's, not the process's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_file_sizes_refuses_runs_and_ends_nothing() {
    let gate = Gate::new("the end");
    let upstream = holding(&gate).await;
    let program = program(&upstream, &[]).await;
    turn(&program, "s").await;
    let open = Open::begin(&program, &gate).await;
    let limit = async |size: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args([
            "--pid",
            &program.pid().to_string(),
            &format!("--fsize={size}:unlimited"),
        ]);
        match prlimit.status().await {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("prlimit: {other:?}")),
        }
    };
    let Some(()) = granted("a limit of file sizes", limit("4096").await) else {
        return;
    };
    refused_by_the_store(&program, &upstream, Duration::from_secs(5)).await;
    not_ready(&program).await;
    gate.open();
    open.end_unkept().await;
    limit("unlimited").await.unwrap();
    eventually("readiness", async || {
        (get(&program, "/readyz").await.status == 200).then_some(())
    })
    .await;
    turn(&program, "s").await;
    drop(sound(&store(&program)).await);
}

/// The library that shows a program another time than the machine's. `None`, loudly, where it is not installed.
pub(crate) fn faketime() -> Option<PathBuf> {
    let known = ["x86_64", "aarch64"]
        .map(|machine| PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1")));
    let library = known.into_iter().find(|path| path.exists());
    granted("another clock", library.ok_or("faketime is not installed".to_owned()))
}

/// S14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_an_hour_ends_nothing_and_disorders_nothing() {
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, offset).unwrap();
    set("+0s");
    let (first, second) = (Gate::new("an hour later"), Gate::new("an hour before"));
    let script = Script::sse()
        .role()
        .say("a")
        .wait(&first)
        .say("b")
        .wait(&second)
        .say("c")
        .complete();
    let upstream = Upstream::answering(
        move |request| match request.body.windows(6).any(|word| word == b"\"Hold\"") {
            true => script.clone(),
            false => openai::answer(&["Yes"]),
        },
    )
    .await;
    let settings = [
        ("=LD_PRELOAD", library.to_str().unwrap()),
        ("=FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("=FAKETIME_NO_CACHE", "1"),
        ("=FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("=DONT_FAKE_MONOTONIC", "1"),
        ("SERVER__HEARTBEAT", "200ms"),
        ("RUNS__DEADLINE", "60s"),
    ];
    let program = program(&upstream, &settings).await;
    turn(&program, "s").await;
    let keyed = |door: &str| {
        Call::post(door)
            .json(&body("Hold", "open"))
            .header("Idempotency-Key", "k")
    };
    let mut stream = keyed("/chat/sse").to(&program).await.expect(200).await;
    let token = stream.next_event_named("token").await;
    first.reached().await;
    let created = async || {
        let run = get(&program, &format!("/runs/{}", token.run_id))
            .await
            .expect(200)
            .await
            .json()
            .await;
        run["created_at"].as_str().unwrap()[..13].to_owned()
    };
    let hour = created().await;
    set("+3600s");
    turn(&program, "s").await;
    first.open();
    assert_eq!(stream.next_event_named("token").await.text, "b");
    second.reached().await;
    set("-3600s");
    turn(&program, "s").await;
    second.open();
    let transcript = stream.transcript().await; // ids without a gap, and one end: the reader sees to it
    assert_eq!(
        (
            transcript.text().as_str(),
            transcript.done()["response"]["content"].as_str()
        ),
        ("abc", Some("abc"))
    );
    assert!(transcript.done()["metadata"]["duration_ms"].as_u64().unwrap() < 60_000);
    assert_eq!(created().await, hour, "when it began does not change");
    // Coming back, and a key, work whatever time it is.
    for offset in ["-3600s", "+3600s"] {
        set(offset);
        let back = get(&program, &format!("/runs/{}/events", token.run_id))
            .await
            .expect(200)
            .await;
        assert_eq!(back.transcript().await.text(), "abc", "{offset}");
        let again = keyed("/chat").to(&program).await.expect(200).await.json().await;
        assert_eq!(again["run_id"], json!(token.run_id), "{offset}");
        turn(&program, "s").await;
    }
    let messages = get(&program, "/sessions/s/messages")
        .await
        .expect(200)
        .await
        .json()
        .await;
    let roles: Vec<_> = messages["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant"].repeat(5));
    let faked = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    assert!(faked.contains("faketime"), "the clock was the machine's");
}

/// A group of processes that may have this much memory together.
struct Group(PathBuf);

impl Group {
    fn with_memory(bytes: u64) -> Result<Self, String> {
        let name = format!("sluicegate-test-{}", std::process::id());
        let kinds = [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ];
        let mut why = "there are no control groups".to_owned();
        for (root, limit) in kinds {
            let group = Self(Path::new(root).join(&name));
            let made =
                std::fs::create_dir(&group.0).and_then(|()| std::fs::write(group.0.join(limit), bytes.to_string()));
            match made {
                Ok(()) => return Ok(group),
                Err(error) => why = format!("{}: {error}", group.0.display()),
            }
        }
        Err(why)
    }

    fn add(&self, program: &Process) {
        std::fs::write(self.0.join("cgroup.procs"), program.pid().to_string()).expect("a group that takes processes");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// S15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_little_memory_runs_are_refused_before_the_machine_ends_the_process() {
    let Some(group) = granted("a limit of 128 MiB", Group::with_memory(128 << 20)) else {
        return;
    };
    let gate = Gate::new("the end");
    let piece = "x".repeat(64 << 10);
    let script = (0..16)
        .fold(Script::sse().role(), |script, _| script.say(&piece))
        .wait(&gate)
        .complete();
    let upstream = Upstream::always(script).await;
    let settings = [
        ("RUNS__MEMORY_LIMIT", "24MiB"),
        ("RUNS__MAX_OUTPUT", "2MiB"),
        ("STORE__URL", "memory:"),
        ("ARTIFACTS__URL", "memory:"),
    ];
    let mut program = program(&upstream, &settings).await;
    group.add(&program);
    let (mut open, mut refused) = (Vec::new(), 0);
    // Four times what there is memory for.
    for _ in 0..96 {
        let call = Call::post("/runs").json(&json!({"message": "Hi", "on_disconnect": "continue"}));
        let answer = call.to(&program).await;
        match answer.status {
            202 => {
                open.push(answer.json().await["run_id"].as_str().unwrap().to_owned());
                gate.reached_by(open.len()).await;
            }
            _ => {
                assert_eq!(answer.expect(503).await.problem().await, "overloaded");
                refused += 1;
            }
        }
    }
    assert!((16..40).contains(&open.len()), "{} runs, {refused} refused", open.len());
    get(&program, "/readyz").await.expect(200).await;
    gate.open();
    for run in &open {
        let events = get(&program, &format!("/runs/{run}/events"))
            .await
            .expect(200)
            .await
            .transcript()
            .await;
        assert_eq!(events.text().len(), 16 * piece.len());
    }
    program.terminate().await;
    assert_eq!(program.wait_exit(Duration::from_secs(25)).await.code(), Some(0));
}

/// S16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_it_waits_with_accepting_and_goes_on_when_there_are_some() {
    let gate = Gate::new("the end");
    let upstream = holding(&gate).await;
    let program = program(&upstream, &[("SERVER__HEADER_TIMEOUT", "60s")]).await;
    turn(&program, "s").await;
    let open = Open::begin(&program, &gate).await;
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--nofile=64:64", "--pid", &program.pid().to_string()]);
    let limited = match prlimit.status().await {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("prlimit: {other:?}")),
    };
    let Some(()) = granted("a limit of 64 files", limited) else {
        return;
    };
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(Connection::open(&program).await); // the kernel takes them, if nobody else does
    }
    program.logged("could not be accepted").await;
    // What was let in goes on to its end.
    gate.open();
    open.end_well().await;
    assert!(
        program.log().matches("could not be accepted").count() < 500,
        "it does nothing but try"
    );
    drop(crowd);
    let admin = program.admin().await;
    eventually("a connection to be served again", async || {
        let call = Call::get("/readyz").to(&program);
        let answer = tokio::time::timeout(Duration::from_secs(2), call).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    assert!(Meters::of(&admin).await.get("accept_errors_total") >= 1.0);
    for door in DOORS {
        post(&program, door, body("Hi", door.rsplit('/').next().unwrap()))
            .await
            .expect(200)
            .await
            .body()
            .await;
    }
}

mod a_slow_disk {
    use super::*;

    /// S18: every wait for the disk takes half a second. Tokens do not wait for it; `done` does.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn costs_the_end_and_no_token() {
        const SLOW: Duration = Duration::from_millis(500);
        let gates: Vec<Gate> = (0..10).map(|number| Gate::new(&format!("token {number}"))).collect();
        let script = gates
            .iter()
            .fold(Script::sse().role().say("."), |script, gate| script.wait(gate).say("."));
        let script = script.complete();
        let upstream =
            Upstream::answering(
                move |request| match request.body.windows(6).any(|word| word == b"\"Hold\"") {
                    true => script.clone(),
                    false => openai::answer(&["Yes"]),
                },
            )
            .await;
        let program = program(&upstream, &[]).await;
        turn(&program, "s").await;
        let injected = Strace::on(&program, "fsync,fdatasync", "delay_enter=500000").await;
        let Some(strace) = granted("a slow disk", injected) else {
            return;
        };
        let mut stream = post(&program, "/chat/sse", body("Hold", "open"))
            .await
            .expect(200)
            .await;
        stream.next_event_named("token").await;
        let (place, stop) = (program.addr(), tokio_util::sync::CancellationToken::new());
        // Others are at the disk all the while.
        let others = tokio::spawn({
            let stop = stop.clone();
            async move {
                let mut took = Vec::new();
                while !stop.is_cancelled() {
                    let began = Instant::now();
                    turn(&place, "others").await;
                    took.push(began.elapsed());
                }
                took
            }
        });
        let mut took = Vec::new();
        let mut last = Instant::now();
        for gate in &gates {
            gate.reached().await;
            tokio::time::sleep(Duration::from_millis(170)).await; // at another moment of the disk's each time
            last = Instant::now();
            gate.open();
            stream.next_event_named("token").await;
            took.push(last.elapsed());
        }
        stream.next_event_named("done").await;
        let end = last.elapsed();
        stop.cancel();
        let others = others.await.unwrap();
        strace.stop().await;
        // Most of them: the machine may be busy, and every system call of the program is looked at.
        took.sort_unstable();
        let usual = took[took.len() / 2];
        assert!(usual < SLOW / 4, "a token waits for the disk: {took:?}");
        assert!(end >= SLOW * 9 / 10 && end < SLOW * 20, "{end:?}");
        assert!(
            others.len() >= 2 && others.iter().all(|took| *took >= SLOW * 9 / 10),
            "{others:?}"
        );
    }

    /// The same of one that does not answer for long: the store's deadline is the answer, but for a turn that is already being
    /// committed. That one is waited for, because nobody knows what to say of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn that_does_not_answer_is_not_waited_for_for_ever() {
        let gate = Gate::new("the end");
        let upstream = holding(&gate).await;
        let program = program(&upstream, &[]).await;
        turn(&program, "s").await;
        let open = Open::begin(&program, &gate).await;
        let injected = Strace::on(&program, "fsync,fdatasync", "delay_enter=25000000").await;
        let Some(strace) = granted("a disk that does not answer", injected) else {
            return;
        };
        gate.open();
        let began = Instant::now();
        upstream.idle().await;
        // The writer waits for the disk, or will at once; whoever comes is told so in time.
        eventually("readiness to say no", async || {
            let ready = get(&program, "/readyz").await;
            (ready.status == 503).then_some(())
        })
        .await;
        let refused = async {
            refused_by_the_store(&program, &upstream, Duration::from_secs(12)).await;
        };
        refused.await;
        assert!(began.elapsed() < Duration::from_secs(17), "{:?}", began.elapsed());
        get(&program, "/healthz").await.expect(200).await;
        let complete = open.end_as_kept(&program).await;
        assert!(complete > 0, "a turn that was kept in the end was not told");
        strace.stop().await;
        drop(sound(&store(&program)).await);
    }
}

/// Told to stop while a turn is at such a disk: the process does not wait for it for ever, and nobody is told what is not so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_while_the_disk_does_not_answer_it_does_and_says_nothing_that_is_not_so() {
    prompt(Duration::from_millis(5_900), async || {
        let gate = Gate::new("the end");
        let upstream = holding(&gate).await;
        let mut program = program(&upstream, &[("RUNS__DRAIN", "1s")]).await;
        turn(&program, "s").await;
        let sessions = ["a", "b", "c"];
        let mut streams = Vec::new();
        for session in sessions {
            let stream = post(&program, "/chat/sse", body("Hold", session)).await;
            streams.push(stream.expect(200).await);
        }
        gate.reached_by(3).await;
        let injected = Strace::on(&program, "fsync,fdatasync", "delay_enter=60000000").await;
        let Some(strace) = granted("a disk that does not answer", injected) else {
            return Duration::ZERO;
        };
        gate.open();
        upstream.idle().await;
        eventually("readiness to say no", async || {
            let ready = get(&program, "/readyz").await;
            (ready.status == 503).then_some(())
        })
        .await;
        let told = Instant::now();
        program.terminate().await;
        let ends = join_all(streams.into_iter().map(Response::transcript)).await;
        program.logged("stopped").await;
        let took = told.elapsed();
        drop(strace); // a thread that it holds does not even end
        assert_eq!(program.wait_exit(PATIENCE).await.code(), Some(0));
        program.restart().await;
        for (session, end) in sessions.iter().zip(&ends) {
            let kept = get(&program, &format!("/sessions/{session}")).await.expect(200).await;
            let kept = kept.json().await["message_count"] == 2;
            match end.ended {
                Ended::Eof => assert_eq!(end.terminal().event == "done", kept, "{session}"),
                Ended::Aborted => assert!(!end.kinds().contains(&"error"), "{session}"),
            }
            post(&program, "/chat", body("Hi", session)).await.expect(200).await;
        }
        took
    })
    .await;
}

/// S20: nobody reads what the program logs, and its pipe is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_up_no_request_and_no_stop() {
    let upstream = Upstream::always(openai::answer(&["Yes"])).await;
    let (folder, port, admin_port) = (tempfile::tempdir().unwrap(), reserved_port(), reserved_port());
    let (place, admin) = (port.local_addr().unwrap(), admin_port.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command
        .current_dir(folder.path())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
        .env("OPENAI_API_KEY", "test-key")
        .env("OPENAI_BASE_URL", upstream.base_url())
        .env("SLUICEGATE_MODEL", "openai/test-model");
    command
        .env("SLUICEGATE__SERVER__LISTEN", place.to_string())
        .env("SLUICEGATE__SERVER__ADMIN_LISTEN", admin.to_string())
        .env("SLUICEGATE__LOG__FILTER", "trace,sqlx=trace")
        .kill_on_drop(true);
    let mut child = command.spawn().expect("the program starts");
    eventually("the program to listen", async || {
        drop(tokio::net::TcpStream::connect(place).await.ok()?);
        Some(())
    })
    .await;
    // Far more lines than wait in the pipe and in the program: a run is written down in a dozen.
    let crowd = async || {
        let began = Instant::now();
        for round in 0..20 {
            let turns = (0..20).map(|number| async move {
                let reply = post(&place, DOORS[number % 3], body("Hi", &format!("s{round}-{number}")))
                    .await
                    .expect(200)
                    .await;
                assert_eq!(reply.body().await.ending, Ending::Complete);
            });
            join_all(turns).await;
        }
        assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
    };
    for _ in 0..4 {
        crowd().await;
    }
    assert!(Meters::of(&admin).await.get("log_dropped_total") >= 1.0);
    // Somebody reads again: what is missing is said.
    let mut log = child.stderr.take().expect("piped");
    let mut text = Vec::new();
    soon("a line that says what is missing", async {
        while memchr::memmem::find(&text, b"were dropped").is_none() {
            assert!(log.read_buf(&mut text).await.expect("a pipe") > 0, "the log ended");
        }
    })
    .await;
    // And nobody again: that keeps it from stopping no more than from working.
    crowd().await;
    signal("TERM", child.id().expect("a running program")).await;
    let exit = within(Duration::from_secs(10), "the program to end", child.wait())
        .await
        .unwrap();
    assert_eq!(exit.code(), Some(0));
}
