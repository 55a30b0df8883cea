//! Providers that refuse what is not exactly of their form: sessions stay usable, the operator reads why, the caller reads
//! what is at fault.

use std::process::Stdio;

use serde_json::{Value, json};

use super::house::*;

const JSON: (&str, &str) = ("content-type", "application/json");

fn refusal(message: &str) -> Script {
    let body = json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}});
    Script::status(400, &[JSON], body.to_string())
}

/// The first rule of a strict server that these messages break.
fn fault(messages: &[Value]) -> Option<&'static str> {
    let role = |message: &Value| message["role"].as_str().unwrap_or_default().to_owned();
    let is_blank = |content: &Value| content.is_null() || content.as_str().is_some_and(|text| text.trim().is_empty());
    for pair in messages.windows(2) {
        if role(&pair[0]) == "user" && role(&pair[1]) == "user" {
            return Some("roles must alternate");
        }
    }
    for message in messages {
        if message["role"] == "assistant" && message.get("tool_calls").is_none() && is_blank(&message["content"]) {
            return Some("an assistant message must have content or tool calls");
        }
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        let ids = calls.map(|call| &call["id"]).chain(message.get("tool_call_id"));
        let fits = |id: &str| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        if !ids.into_iter().all(|id| id.as_str().is_some_and(fits)) {
            return Some("Tool call id must be a-z, A-Z, 0-9, with a length of 9.");
        }
    }
    None
}

/// A server that refuses as strict ones do, and else plays a script.
async fn strict(script: impl Fn(&Request) -> Script + Send + Sync + 'static) -> Upstream {
    Upstream::answering(move |request| {
        let messages = request.json["messages"].as_array().cloned().unwrap_or_default();
        match fault(&messages) {
            Some(why) => refusal(why),
            None => script(request),
        }
    })
    .await
}

async fn say(gateway: &impl Place, text: &str) -> Value {
    let body = json!({"message": text, "session_id": "s"});
    post(gateway, "/chat", body).await.expect(200).await.json().await
}

#[tokio::test]
async fn a_session_with_answers_of_nothing_stays_usable() {
    let thought = openai::event(&json!({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}));
    let upstream = strict(move |request| match request.number {
        0 => Script::sse().send(thought.clone()).complete(),
        1 => Script::sse().finish("length").done().end(),
        2 => Script::sse().finish("content_filter").done().end(),
        3 => openai::answer(&[" \n"]),
        _ => openai::answer(&["At last."]),
    })
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    for number in 0..5 {
        say(&gateway, &format!("question {number}")).await;
    }
    let questions: Vec<String> = (0..5).map(|number| format!("question {number}")).collect();
    let sent = json!([{"role": "user", "content": questions.join("\n\n")}]);
    assert_eq!(upstream.requests()[4].json["messages"], sent);
}

#[tokio::test]
async fn a_session_moves_to_a_server_with_ids_of_its_own_form() {
    let tools = Upstream::always(Script::status(200, &[("content-type", "text/plain")], "21 degrees")).await;
    let id = "call_0123456789abcdef0123456789abcdef";
    let first = Upstream::answering(move |request| match request.number {
        0 => Dialect::OpenAi.round(&[], &[(id, "weather", json!({}))]),
        _ => openai::answer(&[""]), // nothing after a tool's result
    })
    .await;
    let second = strict(|_| openai::answer(&["Warm."])).await;
    let recipe = Gateway::with(&first)
        .toml(&Dialect::OpenAi.provider("second", &second))
        .toml(&format!(
            r#"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.weather]
description = "The weather"
url = "http://{}/weather"
[agents.assistant]
tools = ["weather"]
allowed_models = ["second/*"]
[agents.plain]
model = "second/test-model"
"#,
            tools.addr()
        ));
    let gateway = recipe.start().await;
    say(&gateway, "Weather?").await;
    assert_eq!(
        first.requests()[1].json["messages"][2]["tool_call_id"],
        id,
        "its own id goes back to it"
    );
    for body in [
        json!({"message": "And?", "session_id": "s", "model": "second/test-model"}),
        json!({"message": "And?", "session_id": "s", "agent": "plain"}),
    ] {
        let answer = post(&gateway, "/chat", body).await.expect(200).await.json().await;
        assert_eq!(answer["content"], "Warm.");
    }
    // The second agent has no tools, and the conversation has calls.
    assert_eq!(second.calls(), 3, "what the first refusal said is remembered");
    let sent = &second.requests()[2].json;
    assert_eq!(sent["tool_choice"], "none");
    assert_eq!(sent["tools"][0]["function"]["name"], "weather");
}

#[tokio::test]
async fn thinking_beside_calls_goes_back_in_this_turn_and_the_next() {
    let tools = Upstream::always(Script::status(200, &[("content-type", "text/plain")], "21 degrees")).await;
    let thought = openai::event(&json!({"choices": [{"index": 0, "delta": {"reasoning_content": "I look."}}]}));
    let model = Upstream::answering(move |request| {
        let messages = request.json["messages"].as_array().unwrap();
        let mut calls = messages.iter().filter(|message| message.get("tool_calls").is_some());
        if !calls.all(|message| message["reasoning_content"] == "I look.") {
            return refusal("reasoning_content must be passed back to the API");
        }
        match messages.last().unwrap()["role"] == "user" && messages.len() == 1 {
            true => {
                let call = openai::tool_delta(0, "c1", "weather", "{}");
                Script::sse()
                    .send(thought.clone())
                    .send(call)
                    .finish("tool_calls")
                    .done()
                    .end()
            }
            false => openai::answer(&["Warm."]),
        }
    })
    .await;
    let recipe = Gateway::with(&model).toml(&format!(
        r#"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.weather]
description = "The weather"
url = "http://{}/weather"
[agents.assistant]
tools = ["weather"]
"#,
        tools.addr()
    ));
    let gateway = recipe.start().await;
    assert_eq!(say(&gateway, "Weather?").await["content"], "Warm.");
    let gateway = gateway.restart().await; // what is carried is in the store
    assert_eq!(say(&gateway, "And?").await["content"], "Warm.");
    assert_eq!(model.calls(), 3);
}

#[tokio::test]
async fn an_image_of_another_model_s_turn_is_left_out_where_none_is_taken() {
    let sees = Upstream::always(openai::answer(&["A cat."])).await;
    let blind = Upstream::answering(|request| match request.json.to_string().contains("image_url") {
        true => refusal("This model does not support image input."),
        false => openai::answer(&["I cannot see it."]),
    })
    .await;
    let recipe = Gateway::with(&sees).toml(&Dialect::OpenAi.provider("blind", &blind));
    let gateway = recipe
        .toml("[agents.assistant]\nallowed_models = [\"blind/*\"]")
        .start()
        .await;
    let image = json!({"media_type": "image/gif", "data": "R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="});
    let look = json!({"message": "Look", "session_id": "s", "attachments": [image]});
    post(&gateway, "/chat", look.clone())
        .await
        .expect(200)
        .await
        .json()
        .await;
    for asked in [2, 3] {
        let body = json!({"message": "And you?", "session_id": "s", "model": "blind/test-model"});
        post(&gateway, "/chat", body).await.expect(200).await.json().await;
        assert_eq!(blind.calls(), asked, "the refusal is remembered");
    }
    let sent = &blind.requests()[1].json["messages"][0]["content"];
    assert_eq!(
        *sent,
        "Look\n\n[An image (image/gif) was left out: this model does not take it.]"
    );
    let mut new = look;
    new["model"] = json!("blind/test-model");
    let problem = post(&gateway, "/chat", new)
        .await
        .expect(422)
        .await
        .problem_object()
        .await;
    assert_eq!(
        problem["detail"],
        "The model's provider refuses the parameter `attachments`."
    );
}

#[tokio::test]
async fn a_refusal_names_what_is_at_fault_to_the_caller_and_the_reason_to_the_operator() {
    const KEY: &str = "configured-key/1+x";
    let upstream = Upstream::answering(|request| {
        let last = request.json["messages"].as_array().and_then(|all| all.last()).cloned();
        let asked = last.unwrap_or_default()["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let error = |status, message: &str, param: Value, code: Value| {
            let body = json!({"error": {"message": message, "type": "t", "param": param, "code": code}});
            Script::status(status, &[JSON], body.to_string())
        };
        match asked.as_str() {
            "model" => error(
                404,
                "The model `test-model` does not exist.",
                json!(null),
                json!("model_not_found"),
            ),
            "parameter" => error(400, "'temperature' is not\nwanted", json!("temperature"), json!(null)),
            "long" => error(
                400,
                "request (9 tokens) exceeds the available context size",
                json!(null),
                json!(null),
            ),
            "key" => error(
                401,
                &format!("Incorrect key {KEY}, sk-other-key"),
                json!(null),
                json!("invalid_api_key"),
            ),
            _ => Script::status(404, &[("content-type", "text/html")], "<html>Nothing</html>"),
        }
    })
    .await;
    let env = [
        ("OPENAI_API_KEY", KEY),
        ("OPENAI_BASE_URL", &*upstream.base_url()),
        ("SLUICEGATE_MODEL", "openai/test-model"),
    ];
    let program = Process::start(&env, &[]).await;
    for (message, status, code, detail) in [
        (
            "model",
            502,
            "upstream_error",
            "The model's provider does not know the model `test-model`.",
        ),
        (
            "parameter",
            422,
            "upstream_rejected",
            "The model's provider refuses the parameter `temperature`.",
        ),
        (
            "long",
            422,
            "context_too_long",
            "The conversation is longer than the model's context.",
        ),
        (
            "key",
            502,
            "upstream_auth",
            "The model's provider refused this gateway's credentials.",
        ),
        (
            "address",
            502,
            "upstream_error",
            "The model's provider has nothing at the address in the settings.",
        ),
    ] {
        let body = json!({"message": message});
        let problem = post(&program, "/chat", body)
            .await
            .expect(status)
            .await
            .problem_object()
            .await;
        let seen = (&problem["code"], &problem["detail"], &problem["retryable"]);
        assert_eq!(seen, (&json!(code), &json!(detail), &json!(false)), "{message}");
    }
    program.logged("none given").await;
    let log = program.log();
    let warnings: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("refuses"))
        .collect();
    let reasons = [
        "The model `test-model` does not exist.",
        "'temperature' is not wanted",
        "Incorrect key ***, ***",
        "none given",
    ];
    assert_eq!(warnings.len(), reasons.len(), "{log}");
    for (warning, reason) in warnings.iter().zip(reasons) {
        let url = format!("{}/chat/completions", upstream.base_url());
        assert!(warning.contains(reason) && warning.contains(&url), "{warning}");
    }
    assert!(!log.contains(KEY) && !log.contains("sk-other"), "{log}");
}

/// Runs `check-config --online` with these variables.
async fn online(env: &[(&str, &str)]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.current_dir(folder.path()).env_clear().envs(env.iter().copied());
    command
        .args(["check-config", "--online"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = soon("the end of check-config --online", command.output())
        .await
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn every_provider_is_asked_once_by_check_config_online() {
    const KEY: &str = "configured-key/1+x";
    let fine = Upstream::always(openai::answer(&["OK"])).await;
    let strange = Upstream::answering(|_| {
        let body = json!({"error": {"type": "authentication_error", "message": format!("invalid {KEY}")}});
        Script::status(401, &[JSON], body.to_string())
    })
    .await;
    let env = [("OPENAI_API_KEY", KEY), ("OPENAI_BASE_URL", &*fine.base_url())];
    let (success, text) = online(&env).await;
    assert!(success, "{text}");
    assert!(
        text.contains("# openai/gpt-5-mini: reachable, the key and the model are accepted"),
        "{text}"
    );
    assert_eq!(fine.calls(), 1);

    let address = format!("http://{}", strange.addr());
    let more = [("ANTHROPIC_API_KEY", KEY), ("ANTHROPIC_BASE_URL", &*address)];
    let (success, text) = online(&[env, more].concat()).await;
    assert!(!success, "{text}");
    assert!(
        text.contains("# anthropic/claude-sonnet-4-5: reachable, the key is refused"),
        "{text}"
    );
    assert!(text.contains("status 401; invalid ***"), "{text}");
    assert!(!text.contains(KEY), "{text}");
    assert_eq!(strange.requests()[0].path, "/v1/messages");
}

#[tokio::test]
async fn a_provider_on_this_machine_is_never_asked_through_a_proxy() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let nowhere = closed_port();
    for (variable, scheme) in [("HTTP_PROXY", "http"), ("ALL_PROXY", "http"), ("ALL_PROXY", "socks5")] {
        let proxy = format!("{scheme}://{}", nowhere.addr());
        let env = [
            (variable, &*proxy),
            ("OPENAI_API_KEY", "test-key"),
            ("OPENAI_BASE_URL", &*upstream.base_url()),
            ("SLUICEGATE_MODEL", "openai/test-model"),
        ];
        let program = Process::start(&env, &[]).await;
        let answer = post(&program, "/chat", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
        assert_eq!(answer["content"], "Hello", "{variable}={proxy}");
    }
}
