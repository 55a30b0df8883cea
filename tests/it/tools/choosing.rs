//! `tool_choice`, and what it holds for.
use super::*;

#[tokio::test]
async fn what_the_client_chooses_holds_for_the_first_round_only() {
    let named = json!({"name": "weather"});
    // The choice as the provider is told it.
    let rows = [
        (Dialect::OpenAi, "required", "/tool_choice", json!("required")),
        (
            Dialect::OpenAi,
            "named",
            "/tool_choice",
            json!({"type": "function", "function": {"name": "weather"}}),
        ),
        (Dialect::Responses, "required", "/tool_choice", json!("required")),
        (
            Dialect::Responses,
            "named",
            "/tool_choice",
            json!({"type": "function", "name": "weather"}),
        ),
        (Dialect::Anthropic, "required", "/tool_choice", json!({"type": "any"})),
        (
            Dialect::Anthropic,
            "named",
            "/tool_choice",
            json!({"type": "tool", "name": "weather"}),
        ),
        (
            Dialect::Gemini,
            "required",
            "/toolConfig/functionCallingConfig",
            json!({"mode": "ANY"}),
        ),
        (
            Dialect::Gemini,
            "named",
            "/toolConfig/functionCallingConfig",
            json!({"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        ),
    ];
    for (dialect, choice, place, expected) in rows {
        let tools = weather().await;
        let script = [
            dialect.round(&[], &[ask("c1", "Oslo")]),
            dialect.round(&["Sunny."], &[]),
        ];
        let model = Upstream::start(script).await;
        let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
        let choice = if choice == "named" {
            named.clone()
        } else {
            json!(choice)
        };
        let asked = json!({"message": "Weather?", "tool_choice": choice});
        assert_eq!(answer(&gateway, asked).await["content"], "Sunny.");
        let told: Vec<_> = model
            .requests()
            .iter()
            .map(|request| request.json.pointer(place).cloned())
            .collect();
        assert_eq!(told, [Some(expected), None], "{dialect:?} {choice}");
    }
}

#[tokio::test]
async fn none_means_that_no_tool_may_be_called() {
    let tools = weather().await;
    let model = Upstream::start([says("No idea."), asks(&[ask("c1", "Oslo")]), says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;
    let asked = json!({"message": "Weather?", "tool_choice": "none"});
    assert_eq!(answer(&gateway, asked).await["content"], "No idea.");
    assert_eq!(model.requests()[0].json["tool_choice"], "none");
    assert_eq!(
        answer(&gateway, json!({"message": "Weather?", "tool_choice": "auto"})).await["content"],
        "Sunny."
    );
    assert_eq!((model.calls(), tools.calls()), (3, 1));
}

#[tokio::test]
async fn a_tool_that_the_agent_does_not_have_cannot_be_chosen() {
    let (model, tools) = (Upstream::always(says("no")).await, weather().await);
    let recipe = gateway(&model, &tools).toml(
            "[agents.bare]\nmodel = \"openai/test-model\"\n[agents.tied]\nmodel = \"openai/test-model\"\ntools = [\"weather\"]\n\
             max_tool_rounds = 0",
        );
    let gateway = recipe.start().await;
    let rows = [
        (json!({"tool_choice": "required", "agent": "tied"}), "tool_choice"),
        (json!({"tool_choice": {"name": "wether"}}), "tool_choice"),
        (json!({"tool_choice": {"name": "calculator"}}), "tool_choice"),
        (json!({"tool_choice": "required", "agent": "bare"}), "tool_choice"),
        (
            json!({"tool_choice": {"name": "weather"}, "agent": "bare"}),
            "tool_choice",
        ),
        (json!({"tool_choice": "any"}), "tool_choice"),
    ];
    for (mut body, field) in rows {
        body["message"] = json!("Weather?");
        for door in ["/chat", "/chat/sse", "/chat/stream", "/runs"] {
            let refusal = post(&gateway, door, body.clone()).await.expect(422).await;
            let problem = refusal.problem_object().await;
            assert_eq!(
                (&problem["code"], &problem["field"]),
                (&json!("field_invalid"), &json!(field)),
                "{body}"
            );
        }
    }
    assert_eq!(model.calls(), 0);
}

#[tokio::test]
async fn a_provider_that_cannot_be_made_to_call_says_so() {
    let (model, tools) = (Upstream::always(says("no")).await, weather().await);
    let gateway = with_weather(Dialect::Ollama.gateway(&model), &tools).start().await;
    for choice in [json!("required"), json!({"name": "weather"})] {
        let body = json!({"message": "Weather?", "tool_choice": choice});
        let problem = post(&gateway, "/chat", body)
            .await
            .expect(422)
            .await
            .problem_object()
            .await;
        assert_eq!(
            (&problem["code"], &problem["field"]),
            (&json!("field_invalid"), &json!("tool_choice"))
        );
    }
    assert_eq!(model.calls(), 0);
}

#[tokio::test]
async fn an_agent_s_tools_are_listed() {
    let (model, tools) = (Upstream::always(says("no")).await, weather().await);
    let recipe = gateway(&model, &tools).toml(
        r#"
[agents.assistant]
tools = ["weather", "cal*", "current_time", "calculator"]
[agents.bare]
model = "openai/test-model"
"#,
    );
    let gateway = recipe.start().await;
    let agents = get(&gateway, "/agents").await.expect(200).await.json().await;
    let expected = [
        json!(["assistant", ["weather", "calculator", "current_time"]]),
        json!(["bare", []]),
    ];
    assert_eq!(each(&list(&agents["agents"]), &["name", "tools"]), expected);
}

#[tokio::test]
async fn a_tool_that_is_none_stops_the_start() {
    let rows = [
        (r#"["calculater"]"#, "agents.assistant.tools", "\"calculator\""),
        (r#"["calculator", "wether"]"#, "\"wether\"", "weather"),
        (r#"["x*"]"#, "agents.assistant.tools", "\"x*\""),
        (r#"[""]"#, "agents.assistant.tools", "\"\""),
        (r#"["mcp:files"]"#, "agents.assistant.tools", "mcp:SERVER/TOOL"),
        (r#"["mcp:files/*"]"#, "agents.assistant.tools", "[mcp]"),
    ];
    let (model, tools) = (Upstream::always(says("no")).await, weather().await);
    for (named, place, hint) in rows {
        let recipe = gateway(&model, &tools).toml(&format!("[agents.assistant]\ntools = {named}"));
        let settings = sluicegate::config::Settings::from_toml(&recipe.text()).expect("settings in good form");
        let outcome = soon("a start to fail", sluicegate::app::serve(settings)).await;
        let error = format!(
            "{:#}",
            outcome.err().unwrap_or_else(|| panic!("it starts with {named}"))
        );
        assert!(error.contains(place) && error.contains(hint), "{named}: {error}");
    }
}
