//! Ends that come while a tool runs.
use super::*;

/// A tool that reports at once, but never of Rome.
async fn stuck() -> Upstream {
    Upstream::answering(|request| match request.path.ends_with("Rome") {
        true => Script::raw().hang(),
        false => report(&request.path),
    })
    .await
}

async fn model() -> Upstream {
    Upstream::start([asks(&[ask("c1", "Rome"), ask("c2", "Oslo")]), says("Sunny.")]).await
}

/// What is said of a call that was under way.
const UNDER_WAY: &str = "The run was stopped while this call was under way; whether it took effect is not known.";

fn patient(recipe: Recipe) -> Recipe {
    recipe.toml("[agents.assistant]\ntool_timeout = \"60s\"")
}

/// Waits until the run is in the middle of its calls: one is answered, the other is not.
async fn halfway(gateway: &impl Place, body: Value, tools: &Upstream) -> (Response, String) {
    let mut reply = post(gateway, "/chat/sse", body).await;
    let event = reply.next_event_named("tool_result").await;
    assert_eq!(event.json()["tool_result"]["id"], "c2");
    tools.next_request().await;
    tools.next_request().await;
    (reply, event.run_id)
}

/// What a cancel leaves behind: every call has its result, and the session goes on.
async fn assert_kept(gateway: &Gateway, model: &Upstream) {
    let stored = eventually("the turn to be kept", async || {
        Some(history(gateway).await).filter(|messages| !messages.is_empty())
    })
    .await;
    assert_well_formed(&stored);
    let roles = each(&stored, &["role", "tool_call_id", "status"]);
    let expected = [
        json!(["user", null, "cancelled"]),
        json!(["assistant", null, "cancelled"]),
        json!(["tool", "c1", "cancelled"]),
        json!(["tool", "c2", "cancelled"]),
    ];
    assert_eq!(roles, expected);
    assert_eq!(text(&stored[2], "content"), UNDER_WAY);
    assert!(text(&stored[3], "content").contains("21 degrees in Oslo"), "{stored:?}");
    assert_eq!(model.calls(), 1, "the model was asked again");

    assert_eq!(answer(gateway, question("And?")).await["content"], "Sunny.");
    let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
    assert_well_formed(&conversation);
    let roles: Vec<_> = conversation.iter().map(|message| text(message, "role")).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "user"]);
    assert!(
        text(&conversation[2], "content").contains(UNDER_WAY),
        "{conversation:?}"
    );
}

#[tokio::test]
async fn a_cancel_among_the_arguments_keeps_the_words_and_calls_nothing() {
    let (gate, tools) = (Gate::new("half the arguments"), weather().await);
    let asked = openai::tool_delta(0, "c1", "weather", r#"{"city":"Os"#);
    let script = Script::sse()
        .role()
        .say("Let me see.")
        .send(asked)
        .wait(&gate)
        .complete();
    let model = Upstream::start([script, says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;
    let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
    let run = reply.next_event_named("token").await.run_id;
    gate.reached().await;
    let cancel = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
    cancel.expect(200).await;
    model.closed().await;
    assert_eq!(reply.transcript().await.codes(), ["cancelled"]);
    let kept = [json!(["user", "Weather?", []]), json!(["assistant", "Let me see.", []])];
    assert_eq!(each(&history(&gateway).await, &["role", "content", "tool_calls"]), kept);
    answer(&gateway, question("And?")).await;
    assert_eq!((model.calls(), tools.calls()), (2, 0));
}

#[tokio::test]
async fn a_cancel_closes_the_tools_and_answers_their_calls() {
    prompt(PROMPT, async || {
        let (model, tools) = (model().await, stuck().await);
        let gateway = patient(gateway(&model, &tools)).start().await;
        let (reply, run) = halfway(&gateway, question("Weather?"), &tools).await;
        let asked = Instant::now();
        let cancel = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
        cancel.expect(200).await;
        let closed = tools.closed().await - asked;
        let transcript = reply.transcript().await;
        assert_eq!(
            transcript
                .kinds()
                .into_iter()
                .filter(|kind| *kind == "tool_call")
                .count(),
            2
        );
        assert_eq!(transcript.codes(), ["cancelled"]);
        assert_kept(&gateway, &model).await;
        let run = get(&gateway, &format!("/runs/{run}")).await.json().await;
        assert_eq!(run["status"], "cancelled");
        closed
    })
    .await;
}

#[tokio::test]
async fn each_call_that_a_cancel_finds_under_way_is_said_to_have_been() {
    let unknown = ("c4", "forecast", json!({"city": "Rome"}));
    let calls = [ask("c1", "Rome"), ask("c2", "Oslo"), ask("c3", "Rome"), unknown];
    let (model, tools) = (Upstream::start([asks(&calls), says("Sunny.")]).await, stuck().await);
    let gateway = patient(gateway(&model, &tools)).start().await;
    let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
    let refused = reply.next_event_named("tool_result").await;
    let answered = reply.next_event_named("tool_result").await;
    let id = |event: &Value| event["tool_result"]["id"].clone();
    assert_eq!([id(&refused.json()), id(&answered.json())], ["c4", "c2"]);
    for _ in 0..3 {
        tools.next_request().await;
    }
    Call::post(&format!("/runs/{}/cancel", answered.run_id))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(reply.transcript().await.codes(), ["cancelled"]);
    let stored = history(&gateway).await;
    assert_well_formed(&stored);
    let told: Vec<_> = stored[2..].iter().map(|message| text(message, "content")).collect();
    assert_eq!((told[0], told[2]), (UNDER_WAY, UNDER_WAY));
    assert!(
        told[1].contains("21 degrees") && told[3].contains("no tool of this name"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_tools() {
    prompt(PROMPT, async || {
        let (model, tools) = (model().await, stuck().await);
        let gateway = patient(gateway(&model, &tools)).start().await;
        let mut body = question("Weather?");
        body["on_disconnect"] = json!("cancel");
        let (reply, _) = halfway(&gateway, body, &tools).await;
        let left = Instant::now();
        reply.hang_up();
        let closed = tools.closed().await - left;
        assert_kept(&gateway, &model).await;
        closed
    })
    .await;
}

#[tokio::test]
async fn a_deadline_closes_the_tools_and_leaves_the_session_alone() {
    let (model, tools) = (model().await, stuck().await);
    let recipe = patient(gateway(&model, &tools)).toml("[runs]\ndeadline = \"6s\"");
    let gateway = recipe.start().await;
    let (reply, _) = halfway(&gateway, question("Weather?"), &tools).await;
    tools.closed().await;
    assert_eq!(reply.transcript().await.codes(), ["run_deadline"]);
    assert_eq!(history(&gateway).await, [Value::Null; 0]);
    assert_eq!(answer(&gateway, question("And?")).await["content"], "Sunny.");
    let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
    assert_eq!(conversation, [json!({"role": "user", "content": "And?"})]);
}

#[tokio::test]
async fn a_gateway_that_stops_closes_the_tools_and_leaves_the_session_alone() {
    let (model, tools) = (model().await, stuck().await);
    let recipe = patient(gateway(&model, &tools)).toml("[runs]\ndrain = \"300ms\"");
    let gateway = recipe.start().await;
    let (reply, run) = halfway(&gateway, question("Weather?"), &tools).await;
    let (gateway, transcript, _) = tokio::join!(gateway.restart(), reply.transcript(), tools.closed());
    assert_eq!(transcript.codes(), ["shutting_down"]);
    let run = get(&gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(run["status"], "interrupted");
    assert_eq!(history(&gateway).await, [Value::Null; 0]);
    assert_eq!(answer(&gateway, question("And?")).await["content"], "Sunny.");
    assert_eq!(Dialect::OpenAi.conversation(&model.requests()[1].json).len(), 1);
}
