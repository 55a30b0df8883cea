//! Settings: where they come from, which wins, and what is said of those that are wrong.
use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sluicegate::config::{Flags, Settings};
use sluicegate::run::OnCancel;
use tokio::process::Command;

use crate::house::{Gateway, Place, Process, Upstream, closed_port, get, openai, post, soon};

const CANARY: &str = "canary-7f3a";
const DEFAULT: &str = include_str!("../../config/default.toml");

/// What a command of the program ended with.
#[derive(Debug)]
struct Outcome {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program to its end, with nothing in its environment but this.
async fn program(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command
        .current_dir(folder)
        .env_clear()
        .envs(env.iter().copied())
        .args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = soon(format_args!("the end of sluicegate {args:?}"), command.output())
        .await
        .unwrap();
    Outcome {
        code: output.status.code().expect("an exit, not a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Settings from these variables, flags and, perhaps, a file.
fn load(flags: &Flags, env: &[(&str, &str)]) -> Result<Settings, String> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::load(flags, env).map_err(|error| error.to_string())
}

fn from_env(env: &[(&str, &str)]) -> Settings {
    load(&Flags::default(), env).unwrap()
}

fn model_of(settings: &Settings) -> String {
    settings.agents[0].model.to_string()
}

#[test]
fn a_misspelled_key_stops_the_start_and_the_nearest_is_named() {
    let mut failed = Vec::new();
    for (toml, wrong, meant) in [
        ("defualt_agent = \"x\"", "defualt_agent", "default_agent"),
        ("[sever]\nlisten = \"127.0.0.1:0\"", "sever", "server"),
        ("[server]\nlisen = \"127.0.0.1:0\"", "server.lisen", "server.listen"),
        ("[server]\nheart_beat = \"1s\"", "server.heart_beat", "server.heartbeat"),
        (
            "[runs]\ndetach_grase = \"1s\"",
            "runs.detach_grase",
            "runs.detach_grace",
        ),
        ("[runs]\nmax-output = \"1MiB\"", "runs.max-output", "runs.max_output"),
        ("[sessions]\ntll = \"1s\"", "sessions.tll", "sessions.ttl"),
        ("[store]\nuri = \"memory:\"", "store.uri", "store.url"),
        (
            "[auth]\nalow_anonymous = true",
            "auth.alow_anonymous",
            "auth.allow_anonymous",
        ),
        ("[limits]\nmaxruns = 1", "limits.maxruns", "limits.max_runs"),
        ("[log]\nfromat = \"json\"", "log.fromat", "log.format"),
        (
            "[provider_defaults]\ngap_timout = \"1s\"",
            "provider_defaults.gap_timout",
            "provider_defaults.gap_timeout",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\nbase_ulr = \"http://x\"",
            "providers.mine.base_ulr",
            "providers.mine.base_url",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\napikey = \"canary-7f3a\"",
            "providers.mine.apikey",
            "providers.mine.api_key",
        ),
        (
            "[agents.helper]\nmodel = \"demo/guide\"\nsystem_promt = \"x\"",
            "agents.helper.system_promt",
            "agents.helper.system_prompt",
        ),
        (
            "[agents.helper]\nmodel = \"demo/guide\"\nsettings = { temprature = 1.0 }",
            "agents.helper.settings.temprature",
            "agents.helper.settings.temperature",
        ),
    ] {
        let error = Settings::from_toml(toml)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        if !(error.contains(wrong) && error.contains(&format!("did you mean {meant}?"))) || error.contains(CANARY) {
            failed.push(format!("{toml:?}: {error:?}"));
        }
    }
    for (variable, wrong, meant) in [
        (
            "SLUICEGATE__RUNS__DETACH_GRASE",
            "runs.detach_grase",
            "runs.detach_grace",
        ),
        ("SLUICEGATE__SEVER__LISTEN", "sever", "server"),
        ("SLUICEGATE__DEFAULTAGENT", "defaultagent", "default_agent"),
        (
            "SLUICEGATE__PROVIDERS__DEMO__API_KEYS",
            "providers.demo.api_keys",
            "providers.demo.api_key",
        ),
    ] {
        let error = load(&Flags::default(), &[(variable, CANARY)]).err().unwrap_or_default();
        if !(error.contains(wrong) && error.contains(&format!("did you mean {meant}?"))) || error.contains(CANARY) {
            failed.push(format!("{variable}: {error:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_wrong_value_is_named_by_its_key_and_not_repeated() {
    let mut failed = Vec::new();
    for (toml, key) in [
        ("[runs]\ndetach_grace = \"canary-7f3a\"", "runs.detach_grace"),
        ("[runs]\ndetach_grace = 5", "runs.detach_grace"),
        ("[runs]\ndetach_grace = \"-5s\"", "runs.detach_grace"),
        ("[runs]\ndetach_grace = \"5\"", "runs.detach_grace"),
        ("[runs]\ndeadline = \"0s\"", "runs.deadline"),
        ("[runs]\nmax_output = \"canary-7f3a\"", "runs.max_output"),
        ("[runs]\nmax_output = \"-1MiB\"", "runs.max_output"),
        ("[runs]\nmax_output = \"0\"", "runs.max_output"),
        ("[runs]\nmax_output = \"5GiB\"", "runs.max_output"),
        ("[artifacts]\nmax_size = \"0\"", "artifacts.max_size"),
        ("[artifacts]\nmax_size = \"2GiB\"", "artifacts.max_size"),
        ("[artifacts]\nmax_per_run = -1", "artifacts.max_per_run"),
        (
            "[limits]\nconcurrent_runs = 0.4",
            "limits.concurrent_runs: expected a whole number",
        ),
        (
            "[[auth.keys]]\nname = \"a\"\nsha256 = \"ab\"\nrequests_per_minute = 1.5",
            "auth.keys[0].requests_per_minute",
        ),
        ("[artifacts]\nmax_per_rum = 1", "artifacts.max_per_run"),
        ("[runs]\non_cancel = \"canary-7f3a\"", "runs.on_cancel"),
        (
            "[providers.mine]\nkind = \"openai\"\nmax_tokens_field = \"canary-7f3a\"",
            "providers.mine.max_tokens_field",
        ),
        ("[server]\nlisten = \"canary-7f3a\"", "server.listen"),
        ("[server]\nmax_headers = \"canary-7f3a\"", "server.max_headers"),
        ("[server]\nmax_headers = -1", "server.max_headers"),
        ("[server]\nheartbeat = \"0s\"", "server.heartbeat"),
        ("[server]\nheader_timeout = \"0ms\"", "server.header_timeout"),
        ("[server]\nidle_timeout = \"0ms\"", "server.idle_timeout"),
        ("[server]\npublic_url = \"ai.example\"", "server.public_url"),
        ("[server]\npublic_url = \"ftp://ai.example\"", "server.public_url"),
        ("[server]\npublic_url = \"https://ai.example?x=1\"", "server.public_url"),
        ("[server]\nbody_timeout = \"0ms\"", "server.body_timeout"),
        ("[server]\nwrite_timeout = \"0ms\"", "server.write_timeout"),
        ("[server]\nlost_timeout = \"1s\"", "server.lost_timeout"),
        (
            "[server]\ncors_allowed_origins = [\"app.example\"]",
            "server.cors_allowed_origins",
        ),
        (
            "[server]\ncors_allowed_origins = [\"https://app.example/\"]",
            "server.cors_allowed_origins",
        ),
        (
            "[server]\ncors_allowed_origins = [\"*\"]",
            "server.cors_allowed_origins",
        ),
        ("[auth]\nallow_anonymous = \"canary-7f3a\"", "auth.allow_anonymous"),
        ("[sessions]\nttl = \"canary-7f3a\"", "sessions.ttl"),
        ("[sessions]\nttl = \"0s\"", "sessions.ttl"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[log]\notlp_endpoint = \"canary-7f3a\"", "log.otlp_endpoint"),
        ("[log]\notlp_endpoint = \"http://x:canary-7f3a@y\"", "log.otlp_endpoint"),
        ("[server]\nadmin_listen = \"canary-7f3a\"", "server.admin_listen"),
        ("[store]\nurl = \"canary://7f3a\"", "store.url"),
        ("[limits]\nmemory = \"31MiB\"", "limits.memory"),
        ("[run_log]\nurl = \"canary://x:canary-7f3a@y\"", "run_log.url"),
        ("[providers.mine]\nbase_url = \"http://x\"", "providers.mine.kind"),
        ("[providers.mine]\nkind = \"opnai\"", "providers.mine.kind"),
        (
            "[providers.mine]\nkind = \"openai\"\napi_key = [\"canary-7f3a\"]",
            "providers.mine.api_key",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\napi_key = \"canary-7f3a\"\napi_key_env = \"X\"",
            "providers.mine.api_key",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\napi_key_env = \"NOT_SET\"",
            "providers.mine.api_key_env",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\napi_key_file = \"/nowhere/at/all\"",
            "providers.mine.api_key_file",
        ),
        (
            "[providers.mine]\nkind = \"openai\"\nheaders = { x = [\"canary-7f3a\"] }",
            "providers.mine.headers.x",
        ),
        ("[agents.helper]\ndescription = \"x\"", "agents.helper.model"),
        ("[agents.helper]\nmodel = \"nobody\"", "agents.helper.model"),
        (
            "[agents.helper]\nmodel = \"demo/guide\"\nsystem_prompt = \"canary-7f3a\"\nrole = \"y\"",
            "agents.helper",
        ),
        (
            "[agents.helper]\nmodel = \"demo/guide\"\nmax_tool_rounds = \"canary-7f3a\"",
            "agents.helper.max_tool_rounds",
        ),
        (
            "[agents.helper]\nmodel = \"demo/guide\"\ntool_timeout = \"0s\"",
            "agents.helper.tool_timeout",
        ),
        (
            "[tools.http.x]\ndescription = \"x\"\nurl = \"https://x.example\"\ntimeout = \"0s\"",
            "tools.http.x.timeout",
        ),
        (
            "[tools.http.x]\ndescription = \"x\"\nurl = \"https://x.example\"\nheaders = { x = \"canary-7f3a ${NOT_SET}\" }",
            "tools.http.x.headers.x: NOT_SET",
        ),
        (
            "[mcp.x]\ncommand = \"x\"\nstart_timeout = \"0s\"",
            "mcp.x.start_timeout",
        ),
        ("[mcp.x]\ncommand = \"x\"\nurl = \"https://x.example\"", "mcp.x"),
        (
            "[mcp.x]\ncommand = \"x\"\nargs = [\"${NOT_SET}\"]",
            "mcp.x.args: NOT_SET",
        ),
        ("[tools.guard]\nallow = [\"everywhere\"]", "tools.guard.allow"),
    ] {
        let error = Settings::from_toml(toml)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        if !error.contains(key) || error.contains(CANARY) {
            failed.push(format!("{toml:?}: {error:?}"));
        }
    }
    for syntax in ["[server", "api_key = canary-7f3a", "a = \"canary-7f3a", "x = 1\nx = 2"] {
        let error = Settings::from_toml(syntax)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        if error.is_empty() || error.contains(CANARY) {
            failed.push(format!("{syntax:?}: {error:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn secrets_come_from_the_environment_and_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("story.toml");
    let toml = r#"
[providers.mine]
kind = "openai"
headers = { x-team = "${TEAM}" }
[tools.http.x]
description = "x"
url = "https://x.example"
headers = { authorization = "Bearer ${TOKEN} and ${TEAM}" }
[mcp.x]
command = "x"
args = ["--token=${TOKEN}", "plain"]
env = { KEY = "${TOKEN}" }
"#;
    std::fs::write(&file, toml).unwrap();
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let settings = load(&flags, &[("TOKEN", CANARY), ("TEAM", "red"), ("PATH", "/bin")]).unwrap();
    let told = |secret: &secrecy::SecretString| secrecy::ExposeSecret::expose_secret(secret).to_owned();
    let tool = &settings.tools.http[0];
    assert_eq!(told(&tool.headers["authorization"]), format!("Bearer {CANARY} and red"));
    match &settings.tools.mcp[0].transport {
        sluicegate::tool::McpTransport::Child { args, env, .. } => {
            assert_eq!(args, &[format!("--token={CANARY}"), "plain".to_owned()]);
            assert_eq!(
                (told(&env["KEY"]).as_str(), told(&env["PATH"]).as_str()),
                (CANARY, "/bin")
            );
            assert_eq!(env.len(), 2, "nothing else of the environment");
        }
        other => panic!("{other:?}"),
    }
    let shown = settings.effective().unwrap();
    assert!(!shown.contains(CANARY) && shown.contains("--token=${TOKEN}"), "{shown}");
}

#[test]
fn times_and_sizes_are_read_as_people_write_them() {
    for (text, time) in [
        ("250ms", 250),
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1m 30s", 90_000),
        ("1.5s", 1500),
    ] {
        let settings = Settings::from_toml(&format!("[runs]\ndetach_grace = \"{text}\"")).unwrap();
        assert_eq!(settings.detach_grace, Duration::from_millis(time), "{text}");
    }
    for (text, size) in [
        ("64KiB", 64 << 10),
        ("4MiB", 4 << 20),
        ("1GiB", 1 << 30),
        ("4096", 4096),
        ("10kB", 10_000),
    ] {
        let settings = Settings::from_toml(&format!("[runs]\nmax_output = \"{text}\"")).unwrap();
        assert_eq!(settings.runs.max_output, size, "{text}");
    }
    let ttl = |text: &str| {
        Settings::from_toml(&format!("[sessions]\nttl = \"{text}\""))
            .unwrap()
            .session_ttl
    };
    assert_eq!((ttl(""), ttl("24h")), (None, Some(Duration::from_secs(86_400))));
}

#[test]
fn the_environment_says_what_a_file_can() {
    let settings = from_env(&[
        ("SLUICEGATE__RUNS__DETACH_GRACE", "2s"),
        ("SLUICEGATE__RUNS__ON_CANCEL", "discard"),
        ("SLUICEGATE__SERVER__MAX_HEADERS", "50"),
        ("SLUICEGATE__SERVER__MAX_BODY", "1MiB"),
        (
            "SLUICEGATE__SERVER__CORS_ALLOWED_ORIGINS",
            "https://a.example, https://b.example:8443",
        ),
        ("SLUICEGATE__SERVER__TRUSTED_HOSTS", "ai.example"),
        ("SLUICEGATE__AUTH__ALLOW_ANONYMOUS", "true"),
        ("SLUICEGATE__STORE__URL", "memory:"),
        ("SLUICEGATE__LIMITS__MAX_RUNS", "7"),
        ("SLUICEGATE__PROVIDERS__MINE__KIND", "openai"),
        ("SLUICEGATE__PROVIDERS__MINE__BASE_URL", "http://127.0.0.1:9/v1"),
        ("SLUICEGATE__PROVIDERS__MINE__GAP_TIMEOUT", "3s"),
        ("SLUICEGATE__AGENTS__HELPER__MODEL", "mine/some-model"),
        ("SLUICEGATE__AGENTS__HELPER__ALLOWED_MODELS", "mine/*,demo/guide"),
        ("SLUICEGATE__DEFAULT_AGENT", "helper"),
        ("SLUICEGATE", "not a setting"),
        ("SLUICEGATE_OTHER", "not a setting either"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(settings.detach_grace, Duration::from_secs(2));
    assert_eq!(
        (settings.runs.on_cancel, settings.runs.max_runs),
        (OnCancel::Discard, 7)
    );
    assert_eq!((settings.listener.max_headers, settings.max_body), (50, 1 << 20));
    assert_eq!(
        settings.cors_allowed_origins,
        ["https://a.example", "https://b.example:8443"]
    );
    assert_eq!(settings.access.names.trusted, ["ai.example"]);
    assert!(settings.access.allow_anonymous);
    assert_eq!(
        (settings.store_url.as_str(), settings.default_agent.as_str()),
        ("memory:", "helper")
    );
    let mine = settings
        .providers
        .iter()
        .find(|provider| provider.name == "mine")
        .unwrap();
    assert_eq!(
        (mine.base_url.as_str(), mine.limits.gap_timeout),
        ("http://127.0.0.1:9/v1", Duration::from_secs(3))
    );
    assert_eq!(settings.agents[0].allowed_models, ["mine/*", "demo/guide"]);
}

#[test]
fn later_wins_file_environment_flags() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "[server]\nlisten = \"127.0.0.1:1001\"\n[runs]\ndetach_grace = \"1s\"\ndeadline = \"11s\"\n[agents.assistant]\nmodel = \"demo/file\"").unwrap();
    let flags = Flags {
        config: Some(file),
        ..Flags::default()
    };
    let env = [
        ("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:1002"),
        ("SLUICEGATE__RUNS__DETACH_GRACE", "2s"),
        ("SLUICEGATE__AGENTS__ASSISTANT__MODEL", "demo/environment"),
    ];
    let seen = |settings: &Settings| {
        (
            settings.listen.port(),
            settings.detach_grace.as_secs(),
            settings.runs.deadline.as_secs(),
            settings.drain.as_secs(),
            model_of(settings),
        )
    };
    assert_eq!(seen(&from_env(&[])), (8080, 30, 600, 20, "demo/guide".into()));
    assert_eq!(seen(&load(&flags, &[]).unwrap()), (1001, 1, 11, 20, "demo/file".into()));
    assert_eq!(
        seen(&load(&flags, &env).unwrap()),
        (1002, 2, 11, 20, "demo/environment".into())
    );
    let flags = Flags {
        model: Some("demo/flag".into()),
        listen: Some("127.0.0.1:1003".parse().unwrap()),
        ..flags
    };
    assert_eq!(
        seen(&load(&flags, &env).unwrap()),
        (1003, 2, 11, 20, "demo/flag".into())
    );
    let lost = Flags {
        config: Some("/nowhere/at/all.toml".into()),
        ..Flags::default()
    };
    assert!(load(&lost, &[]).unwrap_err().contains("/nowhere/at/all.toml"));
}

#[test]
fn a_key_in_the_environment_is_all_that_a_real_model_takes() {
    let real = from_env(&[("OPENAI_API_KEY", CANARY)]);
    let openai = real
        .providers
        .iter()
        .find(|provider| provider.name == "openai")
        .unwrap();
    assert_eq!(
        (openai.kind.as_str(), openai.base_url.as_str()),
        ("openai", "https://api.openai.com/v1")
    );
    assert!(openai.api_key.is_some() && model_of(&real).starts_with("openai/"));
    assert!(!format!("{real:?}").contains(CANARY), "not even for debugging");

    let own = from_env(&[("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")]);
    let openai = own.providers.iter().find(|provider| provider.name == "openai").unwrap();
    assert_eq!(
        (openai.base_url.as_str(), openai.api_key.is_some()),
        ("http://127.0.0.1:9/v1", false)
    );
    assert!(model_of(&own).starts_with("openai/"));

    let chosen = Flags {
        model: Some("openai/other".into()),
        ..Flags::default()
    };
    assert_eq!(
        model_of(&load(&chosen, &[("OPENAI_API_KEY", "x")]).unwrap()),
        "openai/other"
    );
    assert_eq!(model_of(&from_env(&[])), "demo/guide");

    // What a file says of the provider counts more than what is found; and a key goes nowhere but where it belongs.
    let folder = tempfile::tempdir().unwrap();
    let found = [("OPENAI_API_KEY", "x"), ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")];
    for (more, url, keyed) in [
        ("", "http://127.0.0.1:9/v1", true),
        ("base_url = \"http://127.0.0.1:8/v1\"", "http://127.0.0.1:8/v1", false),
        (
            "base_url = \"http://127.0.0.1:8/v1\"\napi_key = \"y\"",
            "http://127.0.0.1:8/v1",
            true,
        ),
    ] {
        let file = folder.path().join("settings.toml");
        std::fs::write(
            &file,
            format!("[providers.openai]\nkind = \"openai\"\ndefault_model = \"mine\"\n{more}"),
        )
        .unwrap();
        let flags = Flags {
            config: Some(file),
            ..Flags::default()
        };
        let both = load(&flags, &found).unwrap();
        let openai = both
            .providers
            .iter()
            .find(|provider| provider.name == "openai")
            .unwrap();
        assert_eq!(
            (openai.base_url.as_str(), openai.api_key.is_some()),
            (url, keyed),
            "{more}"
        );
        assert_eq!(model_of(&both), "openai/mine");
    }
}

#[test]
fn an_empty_variable_is_none() {
    let settings = from_env(&[
        ("OPENAI_API_KEY", ""),
        ("OPENAI_BASE_URL", ""),
        ("SLUICEGATE__RUNS__DETACH_GRACE", ""),
        ("SLUICEGATE__SERVER__LISTEN", ""),
    ]);
    assert_eq!(
        (
            model_of(&settings).as_str(),
            settings.detach_grace.as_secs(),
            settings.listen.port()
        ),
        ("demo/guide", 30, 8080)
    );
    assert!(settings.providers.iter().all(|provider| provider.name == "demo"));
}

#[tokio::test]
async fn an_empty_variable_is_none_for_the_program_too() {
    let folder = tempfile::tempdir().unwrap();
    let plain = program(folder.path(), &[], &["check-config"]).await;
    assert_eq!(plain.code, 0, "{plain:?}");
    let empty = [
        ("SLUICEGATE_CONFIG", ""),
        ("SLUICEGATE_MODEL", ""),
        ("OPENAI_API_KEY", ""),
        ("SLUICEGATE__STORE__URL", ""),
    ];
    let outcome = program(folder.path(), &empty, &["check-config"]).await;
    assert_eq!((outcome.code, &outcome.out), (0, &plain.out), "{}", outcome.err);
}

#[tokio::test]
async fn the_password_of_a_database_is_shown_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let env = [("SLUICEGATE__STORE__URL", "postgres://ada:canary-7f3a@127.0.0.1:1/chats")];
    let shown = program(folder.path(), &env, &["check-config"]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(
        shown.out.contains("postgres://ada:***@127.0.0.1:1/chats"),
        "{}",
        shown.out
    );
    let started = program(folder.path(), &env, &[]).await;
    assert!(started.code != 0 && started.err.contains("127.0.0.1:1"), "{started:?}");
    for outcome in [&shown, &started] {
        assert!(
            !outcome.out.contains(CANARY) && !outcome.err.contains(CANARY),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn the_variables_and_flags_of_the_program_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.toml"), "[runs]\ndetach_grace = \"7s\"").unwrap();
    std::fs::write(folder.path().join("b.toml"), "[runs]\ndetach_grace = \"8s\"").unwrap();
    let check = async |env: &[(&str, &str)], args: &[&str]| {
        let outcome = program(folder.path(), env, args).await;
        assert_eq!(outcome.code, 0, "{env:?} {args:?} {outcome:?}");
        outcome.out.parse::<toml::Table>().unwrap()
    };
    let file = [("SLUICEGATE_CONFIG", "a.toml")];
    assert_eq!(
        check(&file, &["check-config"]).await["runs"]["detach_grace"].as_str(),
        Some("7s")
    );
    assert_eq!(
        check(&file, &["check-config", "--config", "b.toml"]).await["runs"]["detach_grace"].as_str(),
        Some("8s")
    );
    let model = [("SLUICEGATE_MODEL", "demo/mine")];
    assert_eq!(
        check(&model, &["check-config"]).await["agents"]["assistant"]["model"].as_str(),
        Some("demo/mine")
    );
    assert_eq!(
        check(&model, &["--model", "demo/yours", "check-config"]).await["agents"]["assistant"]["model"].as_str(),
        Some("demo/yours")
    );
    assert_eq!(
        check(&[], &["check-config", "--listen", "127.0.0.1:99"]).await["server"]["listen"].as_str(),
        Some("127.0.0.1:99")
    );
    for (env, args, told) in [
        (&[][..], &["check-config", "--model", "nobody/x"][..], "nobody"),
        (&[], &["check-config", "--config", "c.toml"], "c.toml"),
        (
            &[("SLUICEGATE__RUNS__DETACH_GRASE", "1s")],
            &["check-config"],
            "did you mean runs.detach_grace?",
        ),
        (
            &[("SLUICEGATE__RUNS__DETACH_GRASE", "1s")],
            &[],
            "did you mean runs.detach_grace?",
        ),
        (
            &[("SLUICEGATE__DEFAULT_AGENT", "nobody")],
            &["check-config"],
            "default_agent is \"nobody\", and there is no such agent; there are: assistant",
        ),
    ] {
        let outcome = program(folder.path(), env, args).await;
        assert!(
            outcome.code != 0 && outcome.out.is_empty() && outcome.err.contains(told),
            "{args:?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn what_is_printed_of_secrets_is_that_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), format!("{CANARY}\n")).unwrap();
    std::fs::write(
        folder.path().join("a.toml"),
        "[providers.a]\nkind = \"openai\"\napi_key = \"canary-7f3a\"\nheaders = { x-secret = \"canary-7f3a\" }\n\
         [providers.b]\nkind = \"openai\"\napi_key_env = \"THE_KEY\"\n[providers.c]\nkind = \"openai\"\napi_key_file = \"key\"\n",
    )
    .unwrap();
    let env = [("OPENAI_API_KEY", CANARY), ("THE_KEY", CANARY)];
    let outcome = program(folder.path(), &env, &["check-config", "--config", "a.toml"]).await;
    let said = format!("{}{}", outcome.out, outcome.err);
    assert!(!said.contains(CANARY), "{said}");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let told: toml::Table = outcome.out.parse().unwrap();
    assert_eq!(told["providers"]["a"]["api_key"].as_str(), Some("***"));
    assert_eq!(told["providers"]["a"]["headers"]["x-secret"].as_str(), Some("***"));
    assert_eq!(told["providers"]["openai"]["api_key"].as_str(), Some("***"));
    assert_eq!(told["providers"]["b"]["api_key_env"].as_str(), Some("THE_KEY"));
    // A key that no header can hold, or one that is wrong in another way, is not repeated either.
    for (variable, value) in [
        ("OPENAI_API_KEY", "canary-7f3a\u{1}x"),
        ("OPENAI_BASE_URL", "canary-7f3a"),
        ("OPENAI_BASE_URL", "https://me:canary-7f3a@[x/v1"),
        ("OPENAI_BASE_URL", "https://me:canary-7f3a@127.0.0.1:9/v1"),
        ("OPENAI_BASE_URL", "https://canary-7f3a@127.0.0.1:9/v1"),
        ("OPENAI_BASE_URL", "https://127.0.0.1:9/v1?key=canary-7f3a"),
    ] {
        let outcome = program(
            folder.path(),
            &[(variable, value), ("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:0")],
            &[],
        )
        .await;
        assert!(
            outcome.code != 0 && !outcome.err.contains(CANARY) && !outcome.err.is_empty(),
            "{outcome:?}"
        );
    }
}

#[test]
fn the_default_file_is_the_defaults() {
    let plain = from_env(&[]).effective().unwrap();
    assert_eq!(Settings::from_toml(DEFAULT).unwrap().effective().unwrap(), plain);
    // What is printed can be given back, and says the same.
    assert_eq!(Settings::from_toml(&plain).unwrap().effective().unwrap(), plain);
    // Each of its keys is one that is known, by another value too; none is known twice.
    let file: toml::Table = DEFAULT.parse().unwrap();
    let (mut keys, mut todo) = (0, vec![(Vec::<String>::new(), toml::Value::Table(file))]);
    while let Some((path, value)) = todo.pop() {
        if let toml::Value::Table(table) = value {
            todo.extend(
                table
                    .into_iter()
                    .map(|(key, value)| ([&path[..], &[key]].concat(), value)),
            );
            continue;
        }
        keys += 1;
        let variable = format!("SLUICEGATE__{}", path.join("__").to_uppercase());
        let same = match &value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(list) => list
                .iter()
                .map(|item| item.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(","),
            other => other.to_string(),
        };
        let settings =
            load(&Flags::default(), &[(&variable, &same)]).unwrap_or_else(|error| panic!("{variable}: {error}"));
        assert_eq!(settings.effective().unwrap(), plain, "{variable}={same}");
    }
    assert!(keys > 30, "{keys}");
}

/// The lines behind `#` in the default file are settings too: for what there can be any number of.
#[test]
fn what_the_default_file_shows_is_taken() {
    let mut shown: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut table = None;
    for line in DEFAULT.lines() {
        let Some(line) = line.strip_prefix("# ") else {
            if line.trim() != "#" {
                table = None;
            }
            continue;
        };
        let many = line.contains("NAME") || line.starts_with("[[") || line == "[auth.jwt]";
        if line.starts_with('[') && line.ends_with(']') && many {
            table = Some(line);
        } else if line.is_empty() || line.starts_with("Placeholders") {
            table = None;
        } else if let Some(table) = table {
            shown.entry(table).or_default().push(line);
        }
    }
    let tables: Vec<_> = shown.keys().copied().collect();
    assert_eq!(
        tables.len(),
        6,
        "keys, an issuer, providers, HTTP tools, MCP servers, agents: {tables:?}"
    );
    for (table, lines) in shown {
        let mut tried = 0;
        for line in lines {
            let words = line.split(" # ").next().unwrap_or_default();
            // `key = value` as it stands; a bare list of names with the values of the defaults.
            let settings: Vec<String> = match words.contains('=') {
                true if words.matches(" = ").count() > 1 && !words.contains('{') => {
                    words.split(", ").map(str::to_owned).collect()
                }
                true => vec![words.to_owned()],
                false => {
                    let defaults: toml::Table = DEFAULT.parse().unwrap();
                    words
                        .split(',')
                        .filter_map(|key| {
                            Some(format!(
                                "{} = {}",
                                key.trim(),
                                defaults["provider_defaults"].get(key.trim())?
                            ))
                        })
                        .collect()
                }
            };
            for setting in settings {
                tried += 1;
                let hash = format!("sha256 = \"{}\"", "a".repeat(64));
                let key = format!("name = \"web\"\n{hash}");
                let issuer = ["issuer", "audience", "jwks_url"]
                    .iter()
                    .filter(|key| !setting.starts_with(**key))
                    .map(|key| format!("{key} = \"https://issuer.example\"\n"))
                    .collect::<String>();
                let needed = match table {
                    "[auth.jwt]" => &issuer,
                    "[[auth.keys]]" if setting.starts_with("name") => &hash,
                    "[[auth.keys]]" if setting.starts_with("sha256") => "name = \"web\"",
                    "[[auth.keys]]" => &key,
                    "[providers.NAME]" if !setting.starts_with("kind") => "kind = \"openai\"",
                    "[agents.NAME]" if !setting.starts_with("model") => "model = \"demo/guide\"",
                    "[tools.http.NAME]" if setting.starts_with("url") => "description = \"x\"",
                    "[tools.http.NAME]" if setting.starts_with("description") => "url = \"https://example.com\"",
                    "[tools.http.NAME]" => "description = \"x\"\nurl = \"https://example.com\"",
                    "[mcp.NAME]" if setting.starts_with("args") || setting.starts_with("env") => "command = \"x\"",
                    "[mcp.NAME]" if !setting.starts_with("command") && !setting.starts_with("url") => {
                        "url = \"https://example.com\""
                    }
                    _ => "",
                };
                let toml = format!("[providers.openai]\nkind = \"openai\"\n{table}\n{needed}\n{setting}\n");
                match Settings::from_toml(&toml) {
                    Ok(_) => {}
                    // A name that stands for one of the reader's own.
                    Err(error)
                        if [
                            "VARIABLE",
                            "PATH",
                            "nor a provider",
                            "is not configured",
                            "64 hexadecimal",
                        ]
                        .iter()
                        .any(|name| error.to_string().contains(name)) => {}
                    Err(error) => panic!("{error}: {line}"),
                }
            }
        }
        assert!(tried > 5, "{table}");
    }
}

#[tokio::test]
async fn a_gateway_that_anybody_could_reach_does_not_start_by_accident() {
    let folder = tempfile::tempdir().unwrap();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let outcome = program(folder.path(), &[], &["--listen", listen]).await;
        assert!(
            outcome.code != 0 && outcome.err.contains("auth.allow_anonymous"),
            "{outcome:?}"
        );
    }
    assert!(
        !folder.path().join("data").exists(),
        "a gateway that does not start leaves nothing"
    );
    let toml = "[server]\nlisten = \"0.0.0.0:0\"\nadmin_listen = \"\"\n[store]\nurl = \"memory:\"\n[auth]\nallow_anonymous = true";
    let open = sluicegate::app::serve(Settings::from_toml(toml).unwrap())
        .await
        .unwrap();
    let addr: std::net::SocketAddr = ([127, 0, 0, 1], open.addr().port()).into();
    // All are one caller there, who may not see what the others have, nor choose names.
    let listing = get(&addr, "/sessions").await.expect(403).await;
    assert_eq!(listing.problem().await, "forbidden");
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs", "/sessions"] {
        let mut body = json!({"session_id": "mine"});
        if path != "/sessions" {
            body["message"] = json!("Hi");
        }
        assert_eq!(
            post(&addr, path, body).await.expect(404).await.problem().await,
            "not_found",
            "{path}"
        );
    }
    let answer = post(&addr, "/chat", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let again = json!({"message": "Hi", "session_id": answer["session_id"]});
    post(&addr, "/chat", again).await.expect(200).await.json().await;
    let page = crate::house::Call::get("/agents")
        .header("Origin", "http://localhost:3000")
        .to(&addr)
        .await;
    assert_eq!(
        page.headers.get("access-control-allow-origin"),
        None,
        "a page on the caller's machine is not on ours"
    );
    open.stop().await.unwrap();
}

#[tokio::test]
async fn a_health_check_tells_by_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = Process::start(&[], &[]).await;
    let listen = gateway.addr().to_string();
    let well = program(folder.path(), &[], &["healthcheck", "--listen", &listen]).await;
    assert_eq!((well.code, well.out.as_str()), (0, ""), "{well:?}");
    let by_env = program(
        folder.path(),
        &[("SLUICEGATE__SERVER__LISTEN", &listen)],
        &["healthcheck"],
    )
    .await;
    assert_eq!(by_env.code, 0, "{by_env:?}");
    let anywhere = format!("0.0.0.0:{}", gateway.addr().port());
    let well = program(
        folder.path(),
        &[("SLUICEGATE__SERVER__LISTEN", &anywhere)],
        &["healthcheck"],
    )
    .await;
    assert_eq!(well.code, 0, "an address for all is asked at home: {well:?}");
    gateway.kill9().await;
    let closed = closed_port();
    let nobody = program(
        folder.path(),
        &[],
        &["healthcheck", "--listen", &closed.addr().to_string()],
    )
    .await;
    assert!(nobody.code != 0 && !nobody.err.is_empty(), "{nobody:?}");
    let unwell = Upstream::refusing_status(503, &[], "{}").await;
    let outcome = program(
        folder.path(),
        &[],
        &["healthcheck", "--listen", &unwell.addr().to_string()],
    )
    .await;
    assert!(outcome.code != 0 && outcome.err.contains("not ready"), "{outcome:?}");
    assert_eq!(unwell.requests()[0].path, "/readyz");
}

#[tokio::test]
async fn the_contract_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = program(folder.path(), &[("SLUICEGATE__RUNS__NONSENSE", "1")], &["openapi"]).await;
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""));
    assert_eq!(outcome.out, include_str!("../../openapi.yaml"));
}

#[tokio::test]
async fn a_store_that_is_none_stops_the_start_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.db");
    for (what, bytes) in [
        ("a text", b"These are my notes, and no database.\n".repeat(200)),
        (
            "the head of a database and then nothing of one",
            [&b"SQLite format 3\0"[..], &[7; 4000]].concat(),
        ),
    ] {
        std::fs::write(&file, &bytes).unwrap();
        let url = format!("sqlite://{}", file.display());
        let env = [
            ("SLUICEGATE__STORE__URL", url.as_str()),
            ("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:0"),
        ];
        let outcome = program(folder.path(), &env, &[]).await;
        assert!(outcome.code != 0, "{what}: {outcome:?}");
        assert!(
            outcome.err.contains("notes.db") && !outcome.err.contains("panicked"),
            "{what}: {}",
            outcome.err
        );
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{what} was touched");
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            !left.iter().any(|name| name.to_string_lossy().ends_with("-wal")),
            "{what}: {left:?}"
        );
    }
    let env = [
        ("SLUICEGATE__STORE__URL", "sqlite:///proc/none/x.db"),
        ("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:0"),
    ];
    let outcome = program(folder.path(), &env, &[]).await;
    assert!(
        outcome.code != 0 && outcome.err.contains("/proc/none/x.db"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn two_gateways_do_not_share_a_store() {
    let gateway = Process::start(&[], &[]).await;
    let kept = post(&gateway, "/chat", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let env = [("SLUICEGATE__SERVER__LISTEN", "127.0.0.1:0")];
    let second = program(gateway.folder(), &env, &[]).await;
    assert!(
        second.code != 0 && second.err.contains("in use by another sluicegate"),
        "{second:?}"
    );
    let messages = get(&gateway, "/sessions/s/messages")
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(messages["messages"][1]["content"], kept["content"]);
    post(&gateway, "/chat", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await;
}

#[tokio::test]
async fn an_address_that_is_taken_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let outcome = program(folder.path(), &[], &["--listen", &gateway.addr().to_string()]).await;
    assert!(
        outcome.code != 0 && outcome.err.contains(&gateway.addr().to_string()),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn the_first_lines_of_the_log_say_what_one_wants_to_know() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = Process::with(&upstream).await;
    for told in [
        &format!("listening on http://{}", gateway.addr())[..],
        "openai/test-model",
        "data/sluicegate.db",
        "may call",
    ] {
        gateway.logged(told).await;
    }
    assert!(!gateway.log().contains("test-key"));
}

#[test]
fn every_provider_is_found_by_its_usual_variables() {
    let endpoint = ("AZURE_OPENAI_ENDPOINT", "https://res.openai.azure.com/");
    for (env, model, url) in [
        (
            &[("ANTHROPIC_API_KEY", "x")][..],
            "anthropic/",
            "https://api.anthropic.com/v1",
        ),
        (
            &[("GEMINI_API_KEY", "x")],
            "gemini/",
            "https://generativelanguage.googleapis.com/v1beta",
        ),
        (
            &[("GOOGLE_API_KEY", "x"), ("GEMINI_BASE_URL", "http://127.0.0.1:9")],
            "gemini/",
            "http://127.0.0.1:9",
        ),
        (&[("GROQ_API_KEY", "x")], "groq/", "https://api.groq.com/openai/v1"),
        (
            &[
                ("AZURE_OPENAI_API_KEY", "x"),
                endpoint,
                ("AZURE_OPENAI_DEPLOYMENT", "mine"),
            ],
            "azure/mine",
            "https://res.openai.azure.com/openai/v1",
        ),
        (
            &[
                ("AZURE_OPENAI_API_KEY", "x"),
                endpoint,
                ("AZURE_OPENAI_DEPLOYMENT", "mine"),
                ("AZURE_OPENAI_API_VERSION", "2024-10-21"),
            ],
            "azure/mine",
            "https://res.openai.azure.com",
        ),
        (&[("OLLAMA_HOST", "0.0.0.0")], "ollama/", "http://127.0.0.1:11434"),
        (&[("OLLAMA_HOST", "box:1234")], "ollama/", "http://box:1234"),
        (
            &[("OLLAMA_HOST", "https://ollama.example")],
            "ollama/",
            "https://ollama.example",
        ),
        (
            &[("OLLAMA_BASE_URL", "http://127.0.0.1:9/")],
            "ollama/",
            "http://127.0.0.1:9",
        ),
        (
            &[("GROQ_API_KEY", "x"), ("ANTHROPIC_API_KEY", "x")],
            "anthropic/",
            "https://api.anthropic.com/v1",
        ),
        (&[("AZURE_OPENAI_API_KEY", "x")], "demo/guide", ""),
    ] {
        let settings = from_env(env);
        assert!(
            model_of(&settings).starts_with(model),
            "{env:?}: {}",
            model_of(&settings)
        );
        let name = model.split('/').next().unwrap();
        let found = settings
            .providers
            .iter()
            .find(|provider| provider.name == name)
            .unwrap();
        assert_eq!(found.base_url, url, "{env:?}");
    }
}

#[test]
fn files_are_kept_where_the_settings_say() {
    let settings = from_env(&[]);
    assert_eq!(settings.artifacts_url, "file://data/artifacts");
    assert_eq!(
        (settings.artifacts.max_size, settings.artifacts.max_per_run),
        (10 << 20, 20)
    );
    for (url, fine) in [
        ("file:///tmp/files", true),
        ("memory:", true),
        ("s3://bucket/prefix", true),
        ("file://", false),
        ("ftp://host/files", false),
        ("https://example.com/files", false),
        ("s3://key:canary-7f3a@bucket", false),
    ] {
        let settings = from_env(&[
            ("SLUICEGATE__ARTIFACTS__URL", url),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_SECRET_ACCESS_KEY", CANARY),
            ("AWS_ACCESS_KEY_ID", "id"),
        ]);
        match sluicegate::app::check(&settings) {
            Ok(()) => assert!(fine, "{url}"),
            Err(error) => {
                assert!(!fine && error.to_string().contains("artifacts.url"), "{url}: {error}");
                assert!(!error.to_string().contains(CANARY), "{error}");
            }
        }
        assert!(!format!("{settings:?}").contains(CANARY) || url.contains(CANARY));
    }
}

#[test]
fn a_cloud_is_told_of_clouds_and_not_of_models() {
    let settings = from_env(&[
        ("AWS_REGION", "eu-central-1"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "files"),
        ("GOOGLE_SERVICE_ACCOUNT", "/key.json"),
        ("AZURE_OPENAI_API_KEY", CANARY),
        ("GOOGLE_API_KEY", CANARY),
        ("PATH", "/bin"),
    ]);
    let told: Vec<_> = settings.cloud.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        told,
        ["AWS_REGION", "AZURE_STORAGE_ACCOUNT_NAME", "GOOGLE_SERVICE_ACCOUNT"]
    );
}

/// Everything that is wrong is told at once, with its place in the file or its variable.
#[test]
fn all_problems_are_told_at_once_each_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let text = "default_agent = \"a\"\n\
                listen = \"127.0.0.1:1\"\n\
                [server]\n\
                heartbeat = \"0s\"\n\
                \x20 max_boddy = \"1MiB\"\n\
                [runs]\n\
                on_cancel = \"canary-7f3a\"\n\
                [agents.a]\n\
                model = \"demo/guide\"\n\
                response_format = { type = \"canary-7f3a\" }\n";
    std::fs::write(&file, text).unwrap();
    let flags = Flags {
        config: Some(file.clone()),
        ..Flags::default()
    };
    let error = load(&flags, &[("SLUICEGATE__RUNS__DEADLINE", "canary-7f3a")]).unwrap_err();
    let name = file.display();
    for expected in [
        format!("{name}:2:1: unknown setting listen; did you mean server.listen?"),
        format!("{name}:5:3: unknown setting server.max_boddy; did you mean server.max_body?"),
        format!("{name}:7:1: runs.on_cancel: expected \"keep\" or \"discard\""),
        format!(
            "{name}:10:21: agents.a.response_format.type: expected one of \"text\", \"json_object\", \"json_schema\""
        ),
        "runs.deadline: expected a duration".to_owned(),
        "(from SLUICEGATE__RUNS__DEADLINE)".to_owned(),
    ] {
        assert!(error.contains(&expected), "{expected}\nin\n{error}");
    }
    assert!(!error.contains(CANARY), "{error}");
    // What is wrong by its value alone, too, where the form of all is right or has a default.
    let text = "[server]\nheartbeat = \"0s\"\nlost_timeout = \"1s\"\nlisen = \"x\"\n\
                [[auth.keys]]\nname = \"!\"\nsha256 = \"x\"\n[[auth.keys]]\nname = \"a\"\nsha256 = \"y\"\n\
                [agents.a]\nmodel = \"x\"\n[agents.b]\nmodel = \"y\"\n[log]\nfilter = \"verbose\"\n";
    let error = Settings::from_toml(text).unwrap_err().to_string();
    for expected in [
        "the settings:2:1: server.heartbeat",
        "the settings:3:1: server.lost_timeout",
        "the settings:4:1: unknown setting server.lisen",
        "the settings:6:1: auth.keys[0].name",
        "the settings:10:1: auth.keys[1].sha256",
        "the settings:12:1: agents.a.model",
        "the settings:14:1: agents.b.model",
        "the settings:16:1: log.filter: \"verbose\" is no level (off, error, warn, info, debug, trace)",
    ] {
        assert!(error.contains(expected), "{expected}\nin\n{error}");
    }
}

#[tokio::test]
async fn a_syntax_error_has_its_line_and_a_filter_that_is_none_is_refused_before_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "[server]\nlisten = \"127.0.0.1:0\"\nheartbeat = canary-7f3a\n").unwrap();
    let args = ["check-config", "--config", file.to_str().unwrap()];
    let outcome = program(folder.path(), &[], &args).await;
    assert!(
        outcome.code != 0 && outcome.err.contains("mine.toml:3:13: "),
        "{outcome:?}"
    );
    assert!(!outcome.err.contains(CANARY), "{outcome:?}");
    for wrong in ["verbose", "info,verbose", "sluicegate=loud", "warning"] {
        let outcome = program(folder.path(), &[("SLUICEGATE__LOG__FILTER", wrong)], &["check-config"]).await;
        assert!(
            outcome.code != 0 && outcome.err.contains("log.filter"),
            "{wrong}: {outcome:?}"
        );
    }
    for fine in [
        "info",
        "WARN",
        "sluicegate=debug,warn",
        "hyper=trace,info",
        "sluicegate",
        "info,sqlx::query=debug",
    ] {
        let outcome = program(folder.path(), &[("SLUICEGATE__LOG__FILTER", fine)], &["check-config"]).await;
        assert_eq!(outcome.code, 0, "{fine}: {outcome:?}");
    }
}

/// In the environment as in a file, wherever `""` says that there is none.
#[test]
fn an_empty_variable_says_none_where_an_empty_text_does() {
    let file: toml::Table = DEFAULT.parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plain = from_env(&[]).effective().unwrap();
    let (mut todo, mut meant) = (vec![(Vec::<String>::new(), toml::Value::Table(file))], Vec::new());
    while let Some((path, value)) = todo.pop() {
        if let toml::Value::Table(table) = value {
            let inner = table.into_iter();
            todo.extend(inner.map(|(key, value)| ([&path[..], &[key]].concat(), value)));
            continue;
        }
        let key = path.join(".");
        // Some values other than the default, so that "none" is another thing than "not set".
        let other = match (&value, key.as_str()) {
            (toml::Value::Array(_), "server.cors_allowed_origins") => "[\"https://a.example\"]",
            (toml::Value::Array(_), "tools.guard.allow") => "[\"10.0.0.0/8\"]",
            (toml::Value::Array(_), "agent_defaults.tools") => "[\"calculator\"]",
            (toml::Value::Array(_), _) => "[\"a.example\"]",
            (_, "sessions.ttl") => "\"5m\"",
            (_, "log.otlp_endpoint") => "\"http://127.0.0.1:4318\"",
            (_, "server.admin_listen") => "\"127.0.0.1:9191\"",
            _ => continue,
        };
        let with = |value: &str| {
            let (section, name) = key.rsplit_once('.').unwrap();
            format!("[{section}]\n{name} = {value}\n")
        };
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, with(other)).unwrap();
        let flags = Flags {
            config: Some(file),
            ..Flags::default()
        };
        let variable = format!("SLUICEGATE__{}", path.join("__").to_uppercase());
        let none = load(&flags, &[(&variable, "")]).unwrap().effective().unwrap();
        let empty = if value.is_array() { "[]" } else { "\"\"" };
        let expected = Settings::from_toml(&with(empty)).unwrap().effective().unwrap();
        assert_eq!(none, expected, "{variable}");
        assert_ne!(load(&flags, &[]).unwrap().effective().unwrap(), none, "{key}");
        meant.push(key);
    }
    assert_eq!(meant.len(), 7, "{meant:?}");
    // Elsewhere an empty variable is none.
    for variable in [
        "SLUICEGATE__STORE__URL",
        "SLUICEGATE__LOG__FILTER",
        "SLUICEGATE__RUNS__DEADLINE",
    ] {
        assert_eq!(from_env(&[(variable, "")]).effective().unwrap(), plain, "{variable}");
    }
}

#[tokio::test]
async fn the_admin_listener_can_be_switched_off_by_a_variable() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let recipe = Gateway::with(&upstream).toml("[server]\nadmin_listen = \"127.0.0.1:9090\"");
    let program = recipe.spawn_in(&[("SLUICEGATE__SERVER__ADMIN_LISTEN", "")]).await;
    assert!(!program.log().contains("metrics are at"), "{}", program.log());
}

#[tokio::test]
async fn a_name_is_an_address_to_listen_at() {
    let folder = tempfile::tempdir().unwrap();
    for (args, listen) in [
        (&["check-config", "--listen", "localhost:8181"][..], "127.0.0.1:8181"),
        (&["check-config", "--listen", "[::1]:8181"], "[::1]:8181"),
    ] {
        let outcome = program(folder.path(), &[], args).await;
        assert!(outcome.out.contains(&format!("listen = \"{listen}\"")), "{outcome:?}");
    }
    let named = Settings::from_toml("[server]\nlisten = \"localhost:1\"\nadmin_listen = \"localhost:2\"").unwrap();
    assert_eq!(named.listen.to_string(), "127.0.0.1:1");
    assert_eq!(named.admin_listen.unwrap().to_string(), "127.0.0.1:2");
    for wrong in [
        "8080",
        ":8080",
        "localhost",
        "localhost:",
        "localhost:x",
        "http://localhost:80",
        "no.such.name.invalid:80",
    ] {
        let outcome = program(folder.path(), &[], &["check-config", "--listen", wrong]).await;
        assert!(
            outcome.code != 0 && outcome.err.contains("expected an address"),
            "{wrong}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_variable_that_does_nothing_is_named_with_the_nearest_that_does() {
    let folder = tempfile::tempdir().unwrap();
    for (variable, meant) in [
        ("SLUICEGATE_LISTEN", Some("SLUICEGATE__SERVER__LISTEN")),
        ("SLUICEGATE_SERVER_LISTEN", Some("SLUICEGATE__SERVER__LISTEN")),
        ("SLUICEGATE_LOG_FORMAT", Some("SLUICEGATE__LOG__FORMAT")),
        ("SLUICEGATE_STORE_URL", Some("SLUICEGATE__STORE__URL")),
        ("SLUICEGATE_MODEL", None),
        // A service of Kubernetes.
        ("SLUICEGATE_SERVICE_HOST", None),
        ("SLUICEGATE_PORT_8080_TCP", None),
    ] {
        let value = if variable == "SLUICEGATE_MODEL" {
            "demo/guide"
        } else {
            "x"
        };
        let outcome = program(folder.path(), &[(variable, value)], &["check-config"]).await;
        assert_eq!(outcome.code, 0, "{outcome:?}");
        match meant {
            Some(meant) => assert!(
                outcome.err.contains(variable) && outcome.err.contains(&format!("did you mean {meant}?")),
                "{outcome:?}"
            ),
            None => assert_eq!(outcome.err, "", "{variable}"),
        }
    }
    let program = Process::start(&[("SLUICEGATE_LISTEN", "x")], &[]).await;
    let log = program.log();
    assert!(
        log.contains("WARN") && log.contains("SLUICEGATE__SERVER__LISTEN"),
        "{log}"
    );
}
