//! Models that never stop asking.
use super::*;

#[tokio::test]
async fn after_the_last_round_the_model_is_asked_once_more_without_tools() {
    for dialect in Dialect::ALL {
        for limit in [0, 2] {
            let tools = weather().await;
            let model = Upstream::answering(move |request| match request.number {
                number if number < limit => dialect.round(&[], &[ask(&format!("c{number}"), "Oslo")]),
                _ => dialect.round(&["Enough."], &[]),
            })
            .await;
            let recipe = with_weather(dialect.gateway(&model), &tools);
            let gateway = recipe
                .toml(&format!("[agents.assistant]\nmax_tool_rounds = {limit}"))
                .start()
                .await;
            let response = answer(&gateway, question("Weather?")).await;
            assert_eq!(
                (&response["content"], &response["finish_reason"]),
                (&json!("Enough."), &json!("stop"))
            );
            assert_eq!(response["rounds"], limit + 1);
            assert_eq!((model.calls(), tools.calls()), (limit + 1, limit), "{dialect:?}");
            let last = &model.requests()[limit].json;
            // Many servers want every tool of the conversation declared; that none may be called is said there.
            let none = match dialect {
                _ if limit == 0 => json!(null),
                Dialect::Anthropic => json!({"type": "none"}),
                Dialect::Gemini => json!({"functionCallingConfig": {"mode": "NONE"}}),
                Dialect::Ollama => json!(null), // it has no such word
                _ => json!("none"),
            };
            let choice = last.get("toolConfig").unwrap_or(&last["tool_choice"]);
            assert_eq!(*choice, none, "{dialect:?}");
            let declared: &[&str] = if none.is_null() { &[] } else { &["weather"] };
            assert_eq!(dialect.tools(last), declared, "{dialect:?}");
        }
    }
}

#[tokio::test]
async fn a_model_that_asks_even_then_ends_the_run_with_every_call_answered() {
    let tools = weather().await;
    let model = Upstream::answering(|request| match request.number {
        6 => says("Sorry."),
        number => asks(&[ask(&format!("a{number}"), "Oslo"), ask(&format!("b{number}"), "Paris")]),
    })
    .await;
    let gateway = gateway(&model, &tools).start().await;
    let transcript = events(&gateway, question("Weather?")).await;
    let response = transcript.done()["response"].clone();
    assert_eq!(
        (&response["finish_reason"], &response["rounds"]),
        (&json!("tool_calls"), &json!(6))
    );
    assert_eq!((model.calls(), tools.calls()), (6, 10)); // five rounds of tools by default, and one call more
    let records = list(&response["tool_calls"]);
    let right: Vec<_> = records.iter().map(|record| record["ok"] == true).collect();
    assert_eq!(right, [[true; 10].as_slice(), &[false; 2]].concat());
    assert_well_formed(&list(&response["messages"]));
    assert_well_formed(&history(&gateway).await);
    // What the next turn makes of it.
    assert_eq!(answer(&gateway, question("Why?")).await["content"], "Sorry.");
    let conversation = Dialect::OpenAi.conversation(&model.requests()[6].json);
    assert_eq!(conversation.last(), Some(&json!({"role": "user", "content": "Why?"})));
    assert_well_formed(&conversation);
}

#[tokio::test]
async fn more_calls_in_one_round_than_an_answer_may_have_end_the_run() {
    let ids: Vec<String> = (0..1_100).map(|number| format!("c{number}")).collect();
    let all: Vec<_> = ids.iter().map(|id| ask(id, "Oslo")).collect();
    let tools = weather().await;
    for dialect in Dialect::ALL {
        let model = Upstream::always(dialect.round(&[], &all)).await;
        let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
        let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
        assert_eq!(refusal.problem().await, "output_limit", "{dialect:?}");
        assert_eq!((model.calls(), tools.calls()), (1, 0), "{dialect:?}");
    }
}

#[tokio::test]
async fn calls_without_end_are_cut() {
    let call = json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"name": "weather"}}]}}]});
    let many = [openai::event(&call).as_ref(); 500].concat();
    let tools = weather().await;
    let model = Upstream::always(Script::sse().role().repeat(many, Duration::ZERO, 100_000)).await;
    let gateway = gateway(&model, &tools).start().await;
    let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
    assert_eq!(refusal.problem().await, "output_limit");
    model.closed().await;
    assert_eq!((model.calls(), tools.calls()), (1, 0));
}
