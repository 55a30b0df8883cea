//! What was done for whom, told to a collector: spans over OTLP, and a trace that goes on behind the gateway.
use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, any_value},
    trace::v1::Span,
};
use prost::Message;
use serde_json::json;

use crate::house::{Call, Gateway, Script, Upstream, closed_port, eventually, openai, post, within};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A span as the collector got it.
#[derive(Clone, Debug)]
struct Told {
    name: String,
    trace: String,
    id: String,
    parent: String,
    about: BTreeMap<String, String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(value: &AnyValue) -> String {
    match value.value.as_ref() {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::ArrayValue(all)) => all.values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => format!("{other:?}"),
    }
}

fn told(span: &Span) -> Told {
    let about = span
        .attributes
        .iter()
        .filter_map(|pair| Some((pair.key.clone(), shown(pair.value.as_ref()?))));
    Told {
        name: span.name.clone(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        about: about.collect(),
    }
}

/// A collector, which takes everything.
async fn collector() -> Upstream {
    Upstream::always(Script::status(200, &[("content-type", "application/x-protobuf")], "")).await
}

/// What it has got so far.
fn spans(collector: &Upstream) -> Vec<Told> {
    let mut all = Vec::new();
    for request in collector.requests() {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/traces"));
        assert_eq!(request.headers.get("content-type"), Some("application/x-protobuf"));
        let told_all = ExportTraceServiceRequest::decode(request.body.clone()).expect("protobuf");
        for of_resource in told_all.resource_spans {
            let resource = of_resource.resource.expect("a resource").attributes;
            let service = resource
                .iter()
                .find(|pair| pair.key == "service.name")
                .and_then(|pair| pair.value.as_ref());
            assert_eq!(service.map(shown).as_deref(), Some("sluicegate"));
            all.extend(of_resource.scope_spans.iter().flat_map(|scope| &scope.spans).map(told));
        }
    }
    all
}

fn one<'a>(all: &'a [Told], name: &str) -> &'a Told {
    let mut found = all.iter().filter(|span| span.name == name);
    let first = found.next().unwrap_or_else(|| panic!("no {name} in {all:#?}"));
    assert!(found.next().is_none(), "{name} twice in {all:#?}");
    first
}

fn watched(collector: &Upstream) -> String {
    let at = collector.base_url();
    format!("[log]\notlp_endpoint = \"{}\"", at.trim_end_matches("/v1"))
}

#[tokio::test]
async fn a_run_with_a_tool_is_told_as_one_trace_below_the_callers() {
    let collector = collector().await;
    let calls = Script::sse().role().send(openai::tool_delta(
        0,
        "call-1",
        "calculator",
        "{\"expression\":\"6*7\"}",
    ));
    let calls = calls.finish("tool_calls").usage(20, 5).done();
    let upstream = Upstream::start([calls, openai::answer(&["It is ", "42."])]).await;
    let settings = format!("{}\n[agents.assistant]\ntools = [\"calculator\"]", watched(&collector));
    let gateway = Gateway::with(&upstream).toml(&settings).start().await;
    let ask = Call::post("/chat").json(&json!({"message": "a secret question", "session_id": "chat-1"}));
    let answer = ask
        .header("traceparent", PARENT)
        .header("baggage", "user=ada")
        .header("tracestate", "a=b")
        .to(&gateway)
        .await
        .body()
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let run_id = answer.json()["run_id"].as_str().unwrap().to_owned();
    gateway.stop().await;

    let all = spans(&collector);
    assert!(all.iter().all(|span| span.trace == TRACE), "{all:#?}");
    let (request, run) = (one(&all, "POST /chat"), one(&all, "invoke_agent assistant"));
    let chats: Vec<_> = all.iter().filter(|span| span.name == "chat test-model").collect();
    let tool = one(&all, "execute_tool calculator");
    assert_eq!((all.len(), chats.len()), (5, 2), "{all:#?}");
    assert_eq!(request.parent, &PARENT[36..52]);
    assert_eq!(run.parent, request.id);
    assert!(
        chats.iter().chain([&tool]).all(|span| span.parent == run.id),
        "{all:#?}"
    );
    let about = |span: &Told, name: &str| {
        span.about
            .get(name)
            .cloned()
            .unwrap_or_else(|| panic!("no {name} in {span:#?}"))
    };
    assert_eq!(about(request, "http.route"), "/chat");
    assert_eq!(about(request, "http.request.method"), "POST");
    assert_eq!(about(request, "http.response.status_code"), "200");
    assert_eq!(about(run, "gen_ai.operation.name"), "invoke_agent");
    assert_eq!(about(run, "gen_ai.agent.name"), "assistant");
    assert_eq!(about(run, "gen_ai.conversation.id"), "chat-1");
    assert_eq!(about(run, "sluicegate.run.id"), run_id);
    assert_eq!(about(run, "sluicegate.run.status"), "completed");
    for (chat, finish) in [(chats[0], "tool_calls"), (chats[1], "stop")] {
        assert_eq!(about(chat, "gen_ai.operation.name"), "chat");
        assert_eq!(about(chat, "gen_ai.provider.name"), "openai");
        assert_eq!(about(chat, "gen_ai.request.model"), "test-model");
        assert_eq!(about(chat, "gen_ai.response.finish_reasons"), finish);
        assert_eq!(about(chat, "server.address"), "127.0.0.1");
    }
    assert_eq!(about(chats[0], "gen_ai.usage.input_tokens"), "20");
    assert_eq!(about(chats[0], "gen_ai.usage.output_tokens"), "5");
    assert_eq!(about(tool, "gen_ai.tool.name"), "calculator");
    assert_eq!(about(tool, "gen_ai.tool.call.id"), "call-1");
    // The provider is told which of them it works for, and nothing else of the caller's.
    for (asked, chat) in upstream.requests().iter().zip(&chats) {
        let told = format!("00-{TRACE}-{}-01", chat.id);
        assert_eq!(asked.headers.get("traceparent"), Some(&*told));
        assert_eq!(
            (asked.headers.get("baggage"), asked.headers.get("tracestate")),
            (None, None)
        );
    }
    for request in collector.requests() {
        let bytes = String::from_utf8_lossy(&request.body).into_owned();
        for secret in ["secret question", "6*7", "It is", "test-key", "user=ada"] {
            assert!(!bytes.contains(secret), "{secret}");
        }
    }
}

#[tokio::test]
async fn a_call_that_fails_says_why_in_its_span() {
    let collector = collector().await;
    let upstream = Upstream::always(Script::sse().role().say("Hel").cut()).await;
    let gateway = Gateway::with(&upstream).toml(&watched(&collector)).start().await;
    assert_eq!(
        post(&gateway, "/chat", json!({"message": "Hi"}))
            .await
            .body()
            .await
            .status,
        502
    );
    gateway.stop().await;
    let all = spans(&collector);
    let why = one(&all, "chat test-model").about["error.type"].clone();
    assert!(!why.is_empty() && why != "5xx", "{why}");
    assert_eq!(
        one(&all, "invoke_agent assistant").about["error.type"],
        "upstream_truncated"
    );
    assert_eq!(
        one(&all, "invoke_agent assistant").about["sluicegate.run.status"],
        "failed"
    );
    assert_eq!(one(&all, "POST /chat").about["http.response.status_code"], "502");
}

#[tokio::test]
async fn without_a_collector_a_trace_is_passed_on() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let ask = || Call::post("/chat").json(&json!({"message": "Hi"}));
    assert_eq!(ask().to(&gateway).await.body().await.status, 200);
    assert_eq!(
        ask()
            .header("traceparent", PARENT)
            .to(&gateway)
            .await
            .body()
            .await
            .status,
        200
    );
    assert_eq!(
        ask()
            .header("traceparent", "00-nonsense")
            .to(&gateway)
            .await
            .body()
            .await
            .status,
        200
    );
    let told: Vec<_> = upstream
        .requests()
        .iter()
        .map(|one| one.headers.get("traceparent").map(str::to_owned))
        .collect();
    let passed = told[1].clone().expect("a traceparent");
    assert_eq!((passed.len(), &passed[..36], &passed[52..]), (55, &PARENT[..36], "-01"));
    assert_ne!(&passed[36..52], &PARENT[36..52], "a span of its own");
    assert_eq!((&told[0], &told[2]), (&None, &None));
    gateway.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_and_its_spans_are_counted() {
    let away = closed_port();
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let at = crate::house::Place::addr(&away);
    let settings = format!("[server]\nadmin_listen = \"127.0.0.1:0\"\n[log]\notlp_endpoint = \"http://{at}\"");
    let gateway = Gateway::with(&upstream).toml(&settings).start().await;
    for _ in 0..3 {
        assert_eq!(
            post(&gateway, "/chat", json!({"message": "Hi"}))
                .await
                .body()
                .await
                .status,
            200
        );
    }
    let admin = gateway.admin();
    eventually("the spans to be given up", async || {
        let meters = crate::house::Meters::of(&admin).await;
        (meters.get("spans_lost_total") >= 9.0).then_some(())
    })
    .await;
    within(
        std::time::Duration::from_secs(10),
        "the gateway to stop",
        gateway.stop(),
    )
    .await;
}
