//! Settings that are read again (SIGHUP) while runs go on: the real program.
use std::time::Duration;

use serde_json::{Value, json};

use super::house::gateway::signal;
use super::house::*;
use super::mcp::{Notes, runs, until_tools};

const OLD: &str = "sluice_test-key-old";
const NEW: &str = "sluice_test-key-new";

fn key(name: &str, key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\n[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{hex}\"\n")
}

/// An upstream that says a word, waits at the gate, and says another, where it is asked for that.
async fn slow(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |request| match request.json.to_string().contains("slowly") {
        true => Script::sse().role().say("Hel").wait(&gate).say("lo").complete(),
        false => openai::answer(&["Hi"]),
    })
    .await
}

async fn ready(program: &Process) -> Value {
    get(program, "/readyz").await.expect(200).await.json().await
}

fn ask(message: &str) -> Call {
    Call::post("/chat/sse").json(&json!({"message": message}))
}

#[tokio::test]
async fn what_is_read_again_holds_from_then_on_and_a_run_under_way_keeps_what_it_had() {
    let gate = Gate::new("reload");
    let upstream = slow(&gate).await;
    let recipe = Gateway::with(&upstream).toml("[limits]\nmax_runs = 1\n[sessions]\nmax_history_tokens = 5000");
    let program = recipe
        .toml("[log]\nfilter = \"info\"")
        .key("web", OLD, "")
        .spawn()
        .await;
    let before = ready(&program).await;
    assert_eq!(before["generation"], 1);
    let mut stream = ask("slowly").key(OLD).to(&program).await.expect(200).await;
    stream.next_event_named("token").await;
    ask("Hi").key(OLD).to(&program).await.expect(503).await.body().await;

    let agents = "\n[agents.second]\nmodel = \"openai/other-model\"\ntools = [\"calculator\"]\n";
    program.rewrite(|text| {
        let text = text.replace("max_runs = 1", "max_runs = 2");
        let text = text.replace("filter = \"info\"", "filter = \"debug\"");
        let (text, _) = text.split_once("[[auth.keys]]").unwrap();
        format!("{text}{}{agents}", key("web", NEW))
    });
    assert_eq!(program.reload().await, Ok(2));

    // Keys, limits, agents and tools: all at once.
    ask("Hi").key(OLD).to(&program).await.expect(401).await.body().await;
    let second = json!({"message": "Hi", "agent": "second"});
    let second = Call::post("/chat").json(&second).key(NEW).to(&program).await;
    assert_eq!(second.expect(200).await.json().await["model"], "openai/other-model");
    let listed = Call::get("/agents").key(NEW).to(&program).await.json().await;
    assert_eq!(listed["agents"][1]["tools"], json!(["calculator"]), "{listed}");
    program.logged("DEBUG").await;
    // The run that was under way ends as if nothing had been; its owner's new key finds it.
    gate.open();
    let transcript = stream.transcript().await;
    assert_eq!(transcript.text(), "Hello");
    let run = transcript.done()["run_id"].as_str().unwrap().to_owned();
    let run = Call::get(&format!("/runs/{run}")).key(NEW).to(&program).await;
    assert_eq!(run.expect(200).await.json().await["status"], "completed");

    let after = ready(&program).await;
    assert!(
        after["loaded_at"].as_str() > before["loaded_at"].as_str(),
        "{before} {after}"
    );
    let meters = Meters::of(&program.admin().await).await;
    assert_eq!(meters.get("config_generation"), 2.0);
    assert_eq!(meters.get("config_reloads_total{outcome=\"applied\"}"), 1.0);
    // A name that is new is counted by its name.
    assert_eq!(
        meters.get("runs_total{outcome=\"completed\",agent=\"second\",provider=\"openai\"}"),
        1.0
    );
}

#[tokio::test]
async fn settings_that_are_wrong_change_nothing_and_are_said_with_what_is_wrong() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let program = Gateway::with(&upstream).key("web", OLD, "").spawn().await;
    let right = std::fs::read_to_string(program.folder().join("story.toml")).unwrap();
    for (wrong, named) in [
        (
            "[agents.assistant]\nmodel = \"openai/test-model\"\ntools = [\"calculater\"]",
            "calculater",
        ),
        ("[agents.assistant]\nmodel = \"nobody/x\"", "nobody"),
        ("[runs]\ndeadlin = \"1s\"", "runs.deadlin"),
        ("[server", "story.toml"),
        // All keys are gone, and nobody else may call.
        ("default_agent = \"none\"", "none"),
    ] {
        program.rewrite(|_| wrong.to_owned() + &key("web", NEW));
        let line = program.reload().await.unwrap_err();
        assert!(line.contains("ERROR") && line.contains(named), "{line}");
    }
    std::fs::remove_file(program.folder().join("story.toml")).unwrap();
    assert!(program.reload().await.unwrap_err().contains("No such file"));
    assert_eq!(ready(&program).await["generation"], 1);
    ask("Hi").key(NEW).to(&program).await.expect(401).await.body().await;
    ask("Hi")
        .key(OLD)
        .to(&program)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    let meters = Meters::of(&program.admin().await).await;
    assert_eq!(meters.get("config_reloads_total{outcome=\"refused\"}"), 6.0);
    assert_eq!(meters.get("config_last_reload_successful"), 0.0);
    // The next that is right is in force.
    std::fs::write(program.folder().join("story.toml"), right).unwrap();
    assert_eq!(program.reload().await, Ok(2));
    let meters = Meters::of(&program.admin().await).await;
    assert_eq!(meters.get("config_last_reload_successful"), 1.0);
}

#[tokio::test]
async fn what_waits_for_a_restart_is_named_and_the_rest_holds() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let program = Gateway::with(&upstream).spawn().await;
    program.rewrite(|text| {
        let text = text.replace("sluicegate.db", "other.db");
        text + "\n[agents.second]\nmodel = \"openai/other-model\"\n[runs]\ndrain = \"1s\"\n"
    });
    assert_eq!(program.reload().await, Ok(2));
    program.logged("wait for a restart: runs.drain, store.url").await;
    let agents = get(&program, "/agents").await.json().await;
    assert_eq!(agents["agents"].as_array().unwrap().len(), 2);
    assert!(!program.folder().join("other.db").exists());
}

#[tokio::test]
async fn a_server_that_stays_is_left_alone_and_one_that_goes_stays_as_long_as_its_runs() {
    let gate = Gate::new("tools");
    let held = gate.clone();
    let upstream = Upstream::answering(move |request| {
        let json = request.json.to_string();
        match (json.contains("slowly"), json.contains("\"role\":\"tool\"")) {
            (false, _) | (true, true) => openai::answer(&["Done."]),
            (true, false) => {
                let call = Dialect::OpenAi.events(&[], &[("c1", "goes_echo", json!({"text": "still here"}))]);
                let script = Script::sse().wait(&held);
                call.into_iter().fold(script, Script::send).done().end()
            }
        }
    })
    .await;
    let notes = Notes::new();
    let tools = "[agents.assistant]\ntools = [\"mcp:stays/*\", \"mcp:goes/*\"]";
    let recipe = Gateway::with(&upstream).toml(tools).toml(&notes.server("stays", ""));
    let program = recipe.toml(&notes.server("goes", "")).spawn().await;
    until_tools(&program, &["stays_echo", "stays_bare", "goes_echo", "goes_bare"]).await;
    let process = |name: &str| notes.processes(name, "pid");
    let (stays, goes) = (process("stays"), process("goes"));
    assert_eq!((stays.len(), goes.len()), (1, 1));
    let stream = ask("slowly").to(&program).await.expect(200).await;
    upstream.next_request().await;

    program.rewrite(|text| {
        let text = text.replace(", \"mcp:goes/*\"", ", \"mcp:comes/*\"");
        let from = text.find("[mcp.goes]").unwrap();
        format!("{}{}", &text[..from], notes.server("comes", ""))
    });
    assert_eq!(program.reload().await, Ok(2));
    until_tools(&program, &["stays_echo", "stays_bare", "comes_echo", "comes_bare"]).await;
    assert_eq!(process("stays"), stays, "it was not started again");
    assert!(runs(&stays[0]) && runs(&goes[0]), "its run goes on");
    // The run calls the tool that it began with.
    gate.open();
    let transcript = stream.transcript().await;
    let results = transcript.events.iter().filter(|event| event.event == "tool_result");
    let results: Vec<_> = results.map(|event| event.json()["tool_result"].clone()).collect();
    assert_eq!(
        (&results[0]["ok"], &results[0]["content"]),
        (&json!(true), &json!("still here"))
    );
    eventually("the server of no run to be stopped", async || {
        (!runs(&goes[0])).then_some(())
    })
    .await;
    program.logged("The MCP server goes was stopped").await;
    assert!(runs(&stays[0]));
}

#[tokio::test]
async fn many_signals_in_a_row_are_safe_and_the_last_file_is_in_force() {
    let gate = Gate::new("many");
    let upstream = slow(&gate).await;
    let mut program = Gateway::with(&upstream)
        .toml("[runs]\ndeadline = \"60s\"")
        .spawn()
        .await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = ask("slowly").to(&program).await.expect(200).await;
        stream.next_event_named("token").await;
        streams.push(stream);
    }
    for at in 0..40 {
        let description = format!("description = \"number {at}\"\n[agents.");
        program.rewrite(|text| match text.split_once("description") {
            Some((before, after)) => format!("{before}{description}{}", after.split_once("[agents.").unwrap().1),
            None => text.replace(
                "[agents.assistant]",
                &format!("[agents.x]\nmodel = \"openai/m\"\n{description}assistant]"),
            ),
        });
        signal("HUP", program.pid()).await;
        if at % 8 == 0 {
            ask("Hi").to(&program).await.expect(200).await.transcript().await;
        }
    }
    eventually("the last file to be in force", async || {
        let agents = get(&program, "/agents").await.json().await;
        agents.to_string().contains("number 39").then_some(())
    })
    .await;
    gate.open();
    for stream in streams {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
    assert!(!program.log().contains("ERROR"), "{}", program.log());
    program.terminate().await;
    signal("HUP", program.pid()).await; // and while it stops
    assert!(program.wait_exit(Duration::from_secs(20)).await.success());
}
