//! The gateway as others read it: a browser, independent SSE parsers, and clients behind nginx. What is not installed is
//! skipped, with a line that says so; where CI is set that is an error.
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};

use super::house::*;

/// For a program of node's: it starts a browser and asks it several things.
pub(crate) const NODE: Duration = Duration::from_secs(120);

/// Where a program is, if it is installed. Debian keeps servers in sbin.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What a story needs, or `None` after saying that it is skipped.
pub(crate) fn needed<T>(what: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci.is_empty()),
            "CI is set, and {what} is not here"
        );
        // Past the test harness, which keeps what passing tests print to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {what} is not here");
    }
    found
}

/// Where the scripts for node are, if node and what they import are there.
pub(crate) fn scripts() -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let node = needed("node", program("node"))?;
    let modules = Some(folder.join("node_modules/eventsource")).filter(|modules| modules.is_dir());
    needed("tests/browser/node_modules (npm ci --prefix tests/browser)", modules)?;
    Some((node, folder))
}

/// Whether there is a browser.
pub(crate) fn chromium() -> bool {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    needed("chromium", program(&chromium)).is_some()
}

/// Runs a script and gives the line of JSON that it prints.
pub(crate) async fn node((node, folder): (PathBuf, PathBuf), script: &str, argument: &str) -> Value {
    let mut command = Command::new(node);
    command
        .current_dir(folder)
        .arg(script)
        .arg(argument)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within(NODE, format_args!("node {script}"), command.output())
        .await
        .expect("node starts");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let report = serde_json::from_str(out.trim()).unwrap_or_else(|error| panic!("{error} in {out:?}; {err}"));
    assert!(output.status.success(), "{report} {err}");
    report
}

#[tokio::test]
async fn a_browser_reads_the_answer_as_it_comes_and_to_its_end() {
    let Some(scripts) = scripts().filter(|_| chromium()) else {
        return;
    };
    let gateway = Process::start(&[], &[]).await; // without a key it is the demo
    let report = node(scripts, "eventsource.mjs", &format!("http://{}", gateway.addr())).await;
    assert_eq!(report["ok"], true, "{report}\n{}", gateway.log());
}

#[tokio::test]
async fn a_page_streams_with_a_ticket_through_lost_connections() {
    let Some(scripts) = scripts().filter(|_| chromium()) else {
        return;
    };
    let pieces: Vec<String> = (0..20).map(|n| format!("{n} ")).collect();
    let script = pieces.iter().fold(Script::sse().role(), |script, piece| {
        script.say(piece).sleep(Duration::from_millis(300))
    });
    let upstream = Upstream::always(script.complete()).await;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"canary-key");
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("[[auth.keys]]\nname = \"web\"\nsha256 = \"{hex}\"");
    let gateway = Gateway::with(&upstream).toml(&key).start().await;
    let told = json!({"base": format!("http://{}", gateway.addr()), "key": "canary-key"}).to_string();
    let seen = node(scripts, "ticket.mjs", &told).await;
    assert_eq!(
        (&seen["text"], &seen["cuts"]),
        (&json!(pieces.concat()), &json!(2)),
        "{seen}"
    );
    let seqs = seen["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
    let seqs: Vec<usize> = seqs.map(|id| id.split_once(':').unwrap().1.parse().unwrap()).collect();
    assert_eq!(seqs, (0..22).collect::<Vec<_>>(), "each event once: {seen}");
    assert_eq!(seen["leaks"], json!([]));
    assert_eq!(upstream.calls(), 1);
}

mod parsers {
    use super::*;

    /// Tokens with all that is awkward in a stream of lines.
    const PIECES: [&str; 12] = [
        "Hel",
        "lo,\r",
        "\nworld",
        " two\r\nlines",
        "\n\n",
        "\r",
        "\r\n",
        " leading",
        "data: x\n\nevent: done\ndata: {}",
        "世界 👩‍👩‍👧",
        "\u{2028}\u{FEFF}\u{85}",
        " : end",
    ];

    /// What a reader by the standard makes of all of it: CR and CRLF are line ends, also across two tokens.
    fn folded() -> String {
        PIECES.concat().replace("\r\n", "\n").replace('\r', "\n")
    }

    #[tokio::test]
    async fn independent_parsers_read_what_the_upstream_said() {
        let Some(scripts) = scripts() else { return };
        let upstream = Upstream::always(openai::answer(&PIECES)).await;
        let gateway = Gateway::with(&upstream).start().await;
        let whole = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
            .await
            .transcript()
            .await;
        whole.done();
        let run = &whole.events[0].run_id;
        for format in ["raw", "json"] {
            let url = format!("http://{}/runs/{run}/events?format={format}", gateway.addr());
            let report = node(scripts.clone(), "parsers.mjs", &url).await;
            let package = &report["package"];
            // The package was left alone: it came back with the last id, was told to stop, and did.
            assert_eq!(package["statuses"], json!([200, 204]), "{format}");
            assert_eq!(package["lastIds"], json!([null, whole.last_id()]), "{format}");
            assert_eq!(report["parser"]["comments"], json!([]), "{format}");
            for reader in ["package", "parser"] {
                let events = report[reader]["events"].as_array().expect("events");
                let kinds: Vec<_> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
                assert_eq!(kinds, whole.kinds(), "{format}, {reader}");
                for (seq, event) in events.iter().enumerate() {
                    assert_eq!(event["id"], format!("{run}:{seq}"), "{format}, {reader}");
                }
                let tokens = events.iter().filter(|event| event["name"] == "token");
                let data = |event: &Value| event["data"].as_str().expect("data").to_owned();
                let chunk = |event: &Value| serde_json::from_str::<Value>(&data(event)).expect("JSON");
                let (said, expected) = match format {
                    "raw" => (tokens.map(data).collect::<String>(), folded()),
                    _ => (
                        tokens
                            .map(|token| chunk(token)["content"].as_str().unwrap().to_owned())
                            .collect(),
                        PIECES.concat(),
                    ),
                };
                assert_eq!(said, expected, "{format}, {reader}");
                let last = chunk(events.last().expect("an event"));
                assert_eq!(
                    (&last["is_final"], &last["response"]["content"]),
                    (&json!(true), &json!(PIECES.concat()))
                );
            }
        }
        assert_eq!(upstream.calls(), 1);
    }
}

pub(crate) mod behind_nginx {
    use super::*;

    /// An nginx of the story's own. Dropping it kills it, and nothing else.
    pub(crate) struct Nginx {
        child: Child,
        /// Bound, and never listened on, so that no other test gets this port.
        listen: TcpSocket,
        _folder: TempDir,
    }

    impl Place for Nginx {
        fn addr(&self) -> SocketAddr {
            self.listen.local_addr().expect("a bound socket")
        }
    }

    impl Nginx {
        /// In front of this gateway, as the README says: unbuffered, HTTP/1.1.
        async fn start(gateway: &impl Place) -> Option<Self> {
            let gateway = gateway.addr();
            let settings = format!(
                "events {{ worker_connections 128; }}\nhttp {{\naccess_log off;\nserver {{\nlisten 8080;\nlocation / {{\n\
                 proxy_pass http://{gateway};\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_set_header Host $host;\n\
                 proxy_buffering off;\nproxy_read_timeout 60s;\n}}\n}}\n}}\n"
            );
            Self::with(&settings).await
        }

        /// In front of these two, with the settings that are in `deploy`; their name is one of nginx's own.
        pub(crate) async fn shipped(gateways: [SocketAddr; 2]) -> Option<Self> {
            let servers = gateways.map(|gateway| format!("server {gateway} max_fails=1 fail_timeout=5s;\n"));
            let group = format!("upstream gateways {{\nleast_conn;\n{}}}\n", servers.concat());
            Self::shipped_with(&group, "gateways").await
        }

        /// With the settings that are in `deploy`, where the name of the gateways is resolved by this name server.
        pub(crate) async fn shipped_resolving(name_server: SocketAddr, port: u16) -> Option<Self> {
            let resolver = format!("resolver {name_server} valid=1s ipv6=off;\n");
            Self::shipped_with(&resolver, &format!("gateways:{port}")).await
        }

        async fn shipped_with(included: &str, gateways: &str) -> Option<Self> {
            let mut settings = include_str!("../../deploy/nginx.conf").to_owned();
            for (there, instead) in [
                ("worker_processes auto;", ""),
                ("include /tmp/resolver.conf;", included),
                ("set $gateways gateways:8080;", &format!("set $gateways {gateways};")),
            ] {
                assert_eq!(settings.matches(there).count(), 1, "{there}");
                settings = settings.replace(there, instead);
            }
            Self::with(&settings).await
        }

        /// With these settings, in a folder and at a port of its own.
        async fn with(settings: &str) -> Option<Self> {
            let nginx = needed("nginx", program("nginx"))?;
            let folder = tempfile::tempdir().expect("a temporary folder");
            let listen = reserved_port();
            let (at, place) = (folder.path().display(), listen.local_addr().expect("a bound socket"));
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
                .concat();
            for place in ["http {", "listen 8080;"] {
                assert_eq!(settings.matches(place).count(), 1, "{place}");
            }
            let settings = settings
                .replace("http {", &format!("http {{\n{temporary}"))
                .replace("listen 8080;", &format!("listen {place};"));
            let settings =
                format!("daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/error.log;\n{settings}");
            let file = folder.path().join("nginx.conf");
            std::fs::write(&file, settings).expect("a writable folder");
            let mut command = Command::new(nginx);
            command
                .arg("-p")
                .arg(folder.path())
                .arg("-c")
                .arg(file)
                .arg("-e")
                .arg(folder.path().join("error.log"));
            let child = command
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("nginx starts");
            let mut nginx = Self {
                child,
                listen,
                _folder: folder,
            };
            let place = nginx.addr();
            eventually("nginx to listen", async || {
                let exit = nginx.child.try_wait().expect("a child");
                assert!(exit.is_none(), "nginx ended: {exit:?}");
                TcpStream::connect(place).await.ok()
            })
            .await;
            Some(nginx)
        }
    }

    #[tokio::test]
    async fn events_arrive_as_they_come() {
        let gates: Vec<Gate> = (0..5).map(|n| Gate::new(&format!("after token {n}"))).collect();
        let script = gates
            .iter()
            .fold(Script::sse().role(), |script, gate| script.say("word ").wait(gate));
        let upstream = Upstream::always(script.complete()).await;
        let gateway = Gateway::with(&upstream)
            .toml("[server]\nheartbeat = \"100ms\"")
            .start()
            .await;
        let Some(nginx) = Nginx::start(&gateway).await else {
            return;
        };
        let mut stream = post(&nginx, "/chat/sse", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await;
        assert_eq!(stream.next_event().await.event, "start");
        for (number, gate) in gates.iter().enumerate() {
            // The next one is not said before this one is read.
            assert_eq!(stream.next_event().await.text, "word ");
            gate.reached().await;
            if number == 0 {
                tokio::time::sleep(Duration::from_millis(250)).await; // silence, for a heartbeat or two
            }
            gate.open();
        }
        let events = stream.transcript().await;
        assert_eq!(events.done()["response"]["content"], "word ".repeat(5));
        assert!(!events.heartbeats.is_empty(), "heartbeats are held back");
    }

    #[tokio::test]
    async fn a_text_arrives_as_it_comes_and_is_whole_or_visibly_broken() {
        let gate = Gate::new("after the first word");
        let upstream = Upstream::start([
            Script::sse().role().say("Hel").wait(&gate).say("lo").complete(),
            Script::sse().role().say("Hel").wait(&gate).say("lo").cut(),
            Script::status(400, &[], "{}"),
        ])
        .await;
        let gateway = Gateway::with(&upstream).start().await;
        let Some(nginx) = Nginx::start(&gateway).await else {
            return;
        };
        let mut text = post(&nginx, "/chat/stream", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await;
        assert_eq!(text.next_bytes().await.unwrap(), "Hel");
        gate.open();
        let text = text.body().await;
        assert_eq!((text.text(), &text.ending), ("lo", &Ending::Complete));
        let broken = post(&nginx, "/chat/stream", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await
            .body()
            .await;
        assert_eq!(
            (broken.text(), broken.ending.is_aborted()),
            ("Hello", true),
            "{:?}",
            broken.ending
        );
        let refused = post(&nginx, "/chat/stream", json!({"message": "Hi"})).await;
        assert_eq!(
            (refused.status, refused.problem().await.as_str()),
            (422, "upstream_rejected")
        );
    }

    #[tokio::test]
    async fn who_hangs_up_on_nginx_closes_the_upstream_too() {
        let gate = Gate::new("never");
        let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate)).await;
        let gateway = Gateway::with(&upstream).start().await;
        let Some(nginx) = Nginx::start(&gateway).await else {
            return;
        };
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let mut text = post(&nginx, "/chat/stream", json!({"message": "Hi"}))
                .await
                .expect(200)
                .await;
            text.next_bytes().await.expect("the first words");
            let left = Instant::now();
            text.hang_up();
            best = best.min(upstream.closed().await.saturating_duration_since(left));
        }
        assert!(best <= Duration::from_millis(250), "closed after {best:?}");
    }

    #[tokio::test]
    async fn a_client_comes_back_through_nginx_where_it_was() {
        let gate = Gate::new("the end");
        let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
        let gateway = Gateway::with(&upstream).start().await;
        let Some(nginx) = Nginx::start(&gateway).await else {
            return;
        };
        let mut stream = get(&nginx, "/chat/sse?message=Hi").await.expect(200).await;
        let token = stream.next_event_named("token").await;
        stream.reset();
        let resumed = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", &token.id)
            .to(&nginx)
            .await
            .expect(200)
            .await;
        gate.open();
        let resumed = resumed.transcript().await;
        assert_eq!(
            (resumed.text().as_str(), resumed.kinds()),
            ("lo", vec!["token", "done"])
        );
        let over = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", resumed.last_id().unwrap())
            .to(&nginx)
            .await;
        assert_eq!(over.status, 204);
        assert_eq!(upstream.calls(), 1);
    }
}
