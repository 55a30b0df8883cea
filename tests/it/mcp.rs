//! Agents with the tools of MCP servers: one that does as it is told (`scripted.py`), and one that others wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::browser::{needed, program};
use super::house::gateway::{Recipe, reserved_port};
use super::house::*;

/// A folder in which scripted servers note what happens to them.
pub(super) struct Notes(TempDir);

impl Notes {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// The settings of a scripted server. It notes under its own name.
    pub(super) fn server(&self, name: &str, mode: &str) -> String {
        let log = self.0.path().join(name);
        let script = json!(include_str!("../../src/tool/mcp/scripted.py")); // a string of JSON is one of TOML
        format!(
            "[mcp.{name}]\ncommand = \"python3\"\nargs = [\"-c\", {script}, {mode:?}]\nenv = {{ PATH = {:?}, LOG = {log:?} }}\n",
            env!("PATH"),
        )
    }

    /// What a server noted.
    pub(super) fn of(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    /// The processes that a server noted under this word.
    pub(super) fn processes(&self, name: &str, word: &str) -> Vec<PathBuf> {
        let notes = self.of(name);
        let numbers = notes
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        numbers.map(|number| Path::new("/proc").join(number)).collect()
    }

    /// Waits until a server noted this.
    pub(super) async fn noted(&self, name: &str, what: &str) {
        eventually(format!("{name} to note {what:?}"), async || {
            self.of(name).contains(what).then_some(())
        })
        .await;
    }
}

/// Whether a process runs. One that is dead and that nobody has asked about yet does not.
pub(super) fn runs(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// A gateway whose agent has these tools.
fn gateway(model: &Upstream, tools: &[&str], servers: &[String]) -> Recipe {
    let agent = format!("[agents.assistant]\ntools = {tools:?}\n[providers.openai]\nmax_retries = 0");
    Gateway::with(model).toml(&agent).toml(&servers.concat())
}

/// The agent's tools, as `GET /agents` has them.
async fn tools(place: &impl Place) -> Vec<String> {
    let agents = get(place, "/agents").await.expect(200).await.json().await;
    let tools = agents["agents"][0]["tools"].as_array().expect("a list");
    tools
        .iter()
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect()
}

/// Waits until the agent has exactly these tools.
pub(super) async fn until_tools(place: &impl Place, expected: &[&str]) {
    eventually(format!("the tools {expected:?}"), async || {
        (tools(place).await == expected).then_some(())
    })
    .await;
}

fn asks(asks: &[Ask<'_>]) -> Script {
    Dialect::OpenAi.round(&[], asks)
}

fn says(text: &str) -> Script {
    Dialect::OpenAi.round(&[text], &[])
}

fn echo<'a>(id: &'a str, text: &str) -> Ask<'a> {
    (id, "echo", json!({ "text": text }))
}

async fn events(place: &impl Place) -> Transcript {
    let question = json!({"message": "Hi", "format": "json"});
    let answer = post(place, "/chat/sse", question).await;
    answer.expect(200).await.transcript().await
}

/// What the events of this kind hold, by call.
fn held(transcript: &Transcript, kind: &str) -> Vec<Value> {
    let of_it = transcript.events.iter().filter(|event| event.event == kind);
    let mut all: Vec<Value> = of_it.map(|event| event.json()[kind].clone()).collect();
    all.sort_by_key(|one| one["id"].to_string());
    all
}

/// The one result of a run that goes on after it.
async fn only_result(place: &impl Place) -> Value {
    let transcript = events(place).await;
    assert_eq!(transcript.done()["response"]["content"], "Done.");
    let mut results = held(&transcript, "tool_result");
    assert_eq!(results.len(), 1, "{results:?}");
    results.remove(0)
}

#[tokio::test]
async fn a_server_s_tool_and_a_built_in_one_are_called_side_by_side() {
    let calls = [
        echo("c1", "hello"),
        ("c2", "calculator", json!({"expression": "17 * 23"})),
    ];
    let model = Upstream::start([asks(&calls), says("Done.")]).await;
    let notes = Notes::new();
    let servers = [notes.server("files", "")];
    let gateway = gateway(&model, &["calculator", "mcp:files/*"], &servers).start().await;
    until_tools(&gateway, &["calculator", "echo", "bare"]).await;

    let transcript = events(&gateway).await;
    let kinds = [
        "start",
        "tool_call",
        "tool_call",
        "tool_result",
        "tool_result",
        "token",
        "done",
    ];
    assert_eq!(transcript.kinds(), kinds);
    let calls = held(&transcript, "tool_call");
    assert_eq!(
        calls[0],
        json!({"id": "c1", "name": "echo", "arguments": {"text": "hello"}, "round": 1})
    );
    let results = held(&transcript, "tool_result");
    let told: Vec<_> = results.iter().map(|one| (&one["ok"], &one["content"])).collect();
    assert_eq!(told, [(&json!(true), &json!("hello")), (&json!(true), &json!("391"))]);

    let requests = model.requests();
    let offered = Dialect::OpenAi.tools(&requests[0].json);
    assert_eq!(offered, ["calculator", "echo", "bare"]);
    let conversation = Dialect::OpenAi.conversation(&requests[1].json);
    let result = json!({"role": "tool", "tool_call_id": "c1", "content": "hello"});
    assert!(conversation.contains(&result), "{conversation:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn tools_of_the_same_name_go_by_their_servers_names_too() {
    let calls = [
        ("c1", "one_echo", json!({"text": "1"})),
        ("c2", "two_echo", json!({"text": "2"})),
    ];
    let model = Upstream::start([asks(&calls), says("Done.")]).await;
    let notes = Notes::new();
    let servers = [notes.server("one", ""), notes.server("two", "")];
    let gateway = gateway(&model, &["mcp:one/*", "mcp:two/echo"], &servers).start().await;
    until_tools(&gateway, &["one_echo", "bare", "two_echo"]).await;
    let results = held(&events(&gateway).await, "tool_result");
    let said: Vec<_> = results.iter().map(|one| (&one["name"], &one["content"])).collect();
    let expected = [(&json!("one_echo"), &json!("1")), (&json!("two_echo"), &json!("2"))];
    assert_eq!(said, expected);
    gateway.stop().await;
}

#[tokio::test]
async fn arguments_that_do_not_fit_do_not_reach_the_server() {
    let model = Upstream::start([asks(&[("c1", "echo", json!({"text": 1}))]), says("Done.")]).await;
    let notes = Notes::new();
    let gateway = gateway(&model, &["mcp:files/*"], &[notes.server("files", "")])
        .start()
        .await;
    until_tools(&gateway, &["echo", "bare"]).await;
    let result = only_result(&gateway).await;
    assert_eq!(result["ok"], false, "{result}");
    assert!(result["content"].as_str().unwrap().contains("text"), "{result}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_file_of_a_server_can_be_downloaded() {
    let model = Upstream::start([asks(&[echo("c1", "file")]), says("Done.")]).await;
    let notes = Notes::new();
    let gateway = gateway(&model, &["mcp:files/*"], &[notes.server("files", "")])
        .start()
        .await;
    until_tools(&gateway, &["echo", "bare"]).await;
    let transcript = events(&gateway).await;
    let kinds = ["start", "tool_call", "artifact", "tool_result", "token", "done"];
    assert_eq!(transcript.kinds(), kinds);
    let file = held(&transcript, "artifact").remove(0);
    assert_eq!(
        (&file["name"], &file["media_type"]),
        (&json!("echo.png"), &json!("image/png"))
    );
    assert_eq!(transcript.done()["artifact_files"], json!([file]));
    let url = file["url"].as_str().expect("a place");
    let body = get(&gateway, url).await.expect(200).await.body().await;
    assert_eq!(&*body.bytes, b"\x89PNG\r\n\x1a\n");
    let result = held(&transcript, "tool_result").remove(0);
    assert!(
        result["content"].as_str().unwrap().starts_with("Here it is."),
        "{result}"
    );
    assert!(!result.to_string().contains("iVBOR"), "{result}");
    gateway.stop().await;
}

mod down {
    use super::*;

    #[tokio::test]
    async fn servers_that_never_begin_keep_nobody_from_working_and_leave_nothing_behind() {
        const MODES: [&str; 4] = ["exits", "silent", "endless", "garbage"];
        let model = Upstream::always(says("Done.")).await;
        let notes = Notes::new();
        let mut servers = MODES.map(|mode| notes.server(mode, mode)).to_vec();
        servers.push("[mcp.missing]\ncommand = \"/does/not/exist\"\n".into());
        let patterns = [
            "calculator",
            "mcp:exits/*",
            "mcp:silent/*",
            "mcp:endless/*",
            "mcp:garbage/*",
            "mcp:missing/*",
        ];
        let began = Instant::now();
        let gateway = gateway(&model, &patterns, &servers).start().await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        get(&gateway, "/readyz").await.expect(200).await;
        assert_eq!(tools(&gateway).await, ["calculator"]);
        assert_eq!(events(&gateway).await.done()["response"]["content"], "Done.");
        assert_eq!(Dialect::OpenAi.tools(&model.requests()[0].json), ["calculator"]);
        gateway.stop().await;
        for mode in MODES {
            let left = notes.processes(mode, "pid");
            assert!(!left.is_empty(), "{mode} never ran");
            for process in &left {
                eventually("the end of a server", async || (!runs(process)).then_some(())).await;
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_dies_in_a_call_is_an_error_for_the_model_and_comes_back() {
        let model = Upstream::answering(|request| match request.number {
            0 => asks(&[echo("c1", "crash")]),
            number if number % 2 == 0 => asks(&[echo("c1", "again")]),
            _ => says("Done."),
        })
        .await;
        let notes = Notes::new();
        let gateway = gateway(&model, &["mcp:files/*"], &[notes.server("files", "")])
            .start()
            .await;
        until_tools(&gateway, &["echo", "bare"]).await;
        let result = only_result(&gateway).await;
        assert_eq!(result["ok"], false, "{result}");
        assert!(
            result["content"].as_str().unwrap().contains("not available"),
            "{result}"
        );
        assert_eq!(
            tools(&gateway).await,
            ["echo", "bare"],
            "what was listed stays on offer"
        );
        eventually("a call that works", async || {
            (only_result(&gateway).await["content"] == "again").then_some(())
        })
        .await;
        gateway.stop().await;
        for process in &notes.processes("files", "pid") {
            eventually("the end of a server", async || (!runs(process)).then_some(())).await;
        }
    }
}

#[tokio::test]
async fn a_tool_that_changes_is_off_for_runs_to_come_and_for_those_under_way() {
    let gate = Gate::new("the tool to change");
    let held_back = gate.clone();
    let model = Upstream::answering(move |request| match request.number {
        0 => Dialect::OpenAi
            .events(&[], &[echo("c1", "hello")])
            .into_iter()
            .fold(Script::sse().wait(&held_back), Script::send)
            .end(),
        _ => says("Done."),
    })
    .await;
    let notes = Notes::new();
    let server = notes.server("files", "drifts") + "refresh = \"5s\"\n";
    let gateway = gateway(&model, &["mcp:files/*"], &[server]).start().await;
    // Asked at once, and answered only when the tool has changed.
    let (result, ()) = tokio::join!(only_result(&gateway), async {
        gate.reached().await;
        until_tools(&gateway, &["bare"]).await;
        gate.open();
    });
    assert_eq!(Dialect::OpenAi.tools(&model.requests()[0].json), ["echo", "bare"]);
    assert_eq!(result["ok"], false, "{result}");
    assert!(result["content"].as_str().unwrap().contains("tool_drift"), "{result}");

    events(&gateway).await.done();
    let last = model.requests().pop().expect("a request");
    assert_eq!(Dialect::OpenAi.tools(&last.json), ["bare"]);
    assert!(
        !String::from_utf8_lossy(&last.body).contains("Ignore all"),
        "{:?}",
        last.body
    );
    gateway.stop().await;
}

mod patience {
    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_an_error_for_the_model_and_cancelled_at_the_server() {
        let model = Upstream::start([asks(&[echo("c1", "sleep")]), says("Done.")]).await;
        let notes = Notes::new();
        let recipe = gateway(&model, &["mcp:files/*"], &[notes.server("files", "")]);
        let gateway = recipe
            .toml("[agents.assistant]\ntool_timeout = \"500ms\"")
            .start()
            .await;
        until_tools(&gateway, &["echo", "bare"]).await;
        let result = only_result(&gateway).await;
        assert_eq!(result["ok"], false, "{result}");
        assert!(result["content"].as_str().unwrap().contains("500ms"), "{result}");
        notes.noted("files", "cancelled").await;
        gateway.stop().await;
    }

    #[tokio::test]
    async fn a_run_that_is_cancelled_cancels_its_calls_at_the_server() {
        let model = Upstream::always(asks(&[echo("c1", "sleep")])).await;
        let notes = Notes::new();
        let recipe = gateway(&model, &["mcp:files/*"], &[notes.server("files", "")]);
        let gateway = recipe.toml("[agents.assistant]\ntool_timeout = \"60s\"").start().await;
        until_tools(&gateway, &["echo", "bare"]).await;
        let mut reply = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
        let run = reply.next_event_named("tool_call").await.run_id;
        notes.noted("files", "sleeps").await;
        let cancel = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
        cancel.expect(200).await;
        assert_eq!(reply.transcript().await.codes(), ["cancelled"]);
        notes.noted("files", "cancelled").await;
        assert_eq!(model.calls(), 1);
        gateway.stop().await;
    }
}

mod the_program {
    use super::*;

    /// The settings of a program whose agent has all tools of these servers, in a file beside the notes.
    fn file(notes: &Notes, servers: &[(&str, &str)]) -> String {
        let path = notes.0.path().join("settings.toml");
        let patterns: Vec<_> = servers.iter().map(|(name, _)| format!("mcp:{name}/*")).collect();
        let mut text = format!("[agents.assistant]\nmodel = \"openai/test-model\"\ntools = {patterns:?}\n");
        text.extend(servers.iter().map(|(name, mode)| notes.server(name, mode)));
        fs::write(&path, text).expect("a writable folder");
        path.to_str().expect("a plain path").to_owned()
    }

    async fn started(model: &Upstream, settings: &str) -> Process {
        let base_url = model.base_url();
        let env = [
            ("OPENAI_API_KEY", "test-key"),
            ("OPENAI_BASE_URL", &*base_url),
            ("ANTHROPIC_API_KEY", "test-key"),
            ("AWS_SECRET_ACCESS_KEY", "test-key"),
            ("SLUICEGATE__LOG__FORMAT", "text"),
            ("LANG", "C.UTF-8"),
            ("PATH", env!("PATH")),
        ];
        Process::start(&env, &["--config", settings]).await
    }

    #[tokio::test]
    async fn a_server_sees_nothing_of_the_gateway_s_secrets() {
        let model = Upstream::always(says("Done.")).await;
        let notes = Notes::new();
        let program = started(&model, &file(&notes, &[("files", "")])).await;
        until_tools(&program, &["echo", "bare"]).await;
        let notes = notes.of("files");
        let seen = notes
            .lines()
            .find_map(|line| line.strip_prefix("env "))
            .expect("a note");
        let seen: Vec<_> = seen.split(' ').collect();
        for name in ["PATH", "LANG", "HOME", "LOG"] {
            assert!(seen.contains(&name), "{name} is missing in {seen:?}");
        }
        let secret = |name: &&&str| name.contains("KEY") || name.contains("OPENAI") || name.contains("SLUICEGATE");
        assert_eq!(seen.iter().find(secret), None);
    }

    #[tokio::test]
    async fn a_gateway_that_is_told_to_stop_leaves_no_orphans() {
        let model = Upstream::always(says("Done.")).await;
        let notes = Notes::new();
        let servers = [("good", ""), ("bad", "stubborn"), ("ugly", "silent")];
        let mut program = started(&model, &file(&notes, &servers)).await;
        until_tools(&program, &["good_echo", "good_bare", "bad_echo", "bad_bare"]).await;
        notes.noted("ugly", "pid ").await;
        let mut all = notes.processes("bad", "grandchild");
        all.extend(servers.iter().flat_map(|(name, _)| notes.processes(name, "pid")));
        assert_eq!(all.iter().filter(|process| runs(process)).count(), 4);
        program.terminate().await;
        assert!(program.wait_exit(Duration::from_secs(25)).await.success());
        for process in &all {
            eventually("the end of a server", async || (!runs(process)).then_some(())).await;
        }
    }

    #[tokio::test]
    async fn a_gateway_that_is_told_to_stop_while_it_starts_leaves_no_orphans() {
        let notes = Notes::new();
        let settings = file(&notes, &[("slow", "silent")]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["--config", &settings, "--listen", "127.0.0.1:0"])
            .current_dir(notes.0.path())
            .env_clear()
            .env("PATH", env!("PATH"))
            .env("OPENAI_API_KEY", "test-key")
            .env("SLUICEGATE__SERVER__ADMIN_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        notes.noted("slow", "env").await;
        let pid = child.id().expect("a running program").to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(kill.expect("a program").success());
        let exit = within(Duration::from_secs(10), "the program to end", child.wait()).await;
        assert!(exit.expect("a child").success(), "it ended by the signal");
        for process in notes.processes("slow", "pid") {
            eventually("the end of the server", async || (!runs(&process)).then_some(())).await;
        }
    }

    #[tokio::test]
    async fn a_gateway_that_is_killed_takes_a_server_along_that_reads() {
        let model = Upstream::always(says("Done.")).await;
        let notes = Notes::new();
        let mut program = started(&model, &file(&notes, &[("files", "")])).await;
        until_tools(&program, &["echo", "bare"]).await;
        program.kill9().await;
        for process in notes.processes("files", "pid") {
            eventually("the end of the server", async || (!runs(&process)).then_some(())).await;
        }
    }
}

/// A server that others wrote: `@modelcontextprotocol/server-everything`.
mod everything {
    use super::*;

    /// Node and the server's program, if they are there.
    fn installed() -> Option<(PathBuf, PathBuf)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/node_modules");
        let server = folder.join("@modelcontextprotocol/server-everything/dist/index.js");
        let node = needed("node", program("node"))?;
        let server = Some(server).filter(|server| server.is_file());
        let server = needed("tests/servers/node_modules (npm ci --prefix tests/servers)", server)?;
        Some((node, server))
    }

    /// Calls its tools, reached as these settings say.
    async fn calls(settings: String) {
        let calls = [
            ("c1", "echo", json!({"message": "hello"})),
            ("c2", "get-sum", json!({"a": 17, "b": 23})),
            ("c3", "get-tiny-image", json!({})),
            ("c4", "get-env", json!({})),
            ("c5", "get-sum", json!({"a": "17"})),
        ];
        let model = Upstream::start([asks(&calls), says("Done.")]).await;
        let gateway = gateway(&model, &["calculator", "mcp:everything/*"], &[settings])
            .start()
            .await;
        eventually("its tools", async || (tools(&gateway).await.len() > 1).then_some(())).await;

        let transcript = events(&gateway).await;
        assert_eq!(transcript.done()["response"]["content"], "Done.");
        let results = held(&transcript, "tool_result");
        let content = |at: usize| results[at]["content"].as_str().expect("text");
        assert_eq!((content(0), content(1)), ("Echo: hello", "The sum of 17 and 23 is 40."));
        assert!(content(2).starts_with("Here's the image"), "{}", content(2));
        assert!(
            content(3).contains("PATH") && !content(3).contains("CARGO"),
            "{}",
            content(3)
        );
        let ok: Vec<_> = results.iter().map(|one| one["ok"] == true).collect();
        assert_eq!(ok, [true, true, true, true, false]);

        let image = held(&transcript, "artifact").remove(0);
        assert_eq!(
            (&image["name"], &image["media_type"]),
            (&json!("get-tiny-image.png"), &json!("image/png"))
        );
        let body = get(&gateway, image["url"].as_str().expect("a place"))
            .await
            .body()
            .await;
        assert!(body.bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "{:?}", body.bytes);
        gateway.stop().await;
    }

    #[tokio::test]
    async fn answers_over_its_standard_output() {
        let Some((node, server)) = installed() else { return };
        calls(format!(
            "[mcp.everything]\ncommand = {node:?}\nargs = [{server:?}, \"stdio\"]\nenv = {{ PATH = {:?} }}\n",
            env!("PATH")
        ))
        .await;
    }

    #[tokio::test]
    async fn answers_over_http() {
        let Some((node, server)) = installed() else { return };
        let listen = reserved_port();
        let address = listen.local_addr().expect("a bound socket");
        let mut child = Command::new(node)
            .arg(server)
            .arg("streamableHttp")
            .env_clear()
            .env("PATH", env!("PATH"))
            .env("PORT", address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        calls(format!("[mcp.everything]\nurl = \"http://{address}/mcp\"\n")).await;
        child.kill().await.expect("a child that can be killed");
    }
}
