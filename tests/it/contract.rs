//! The contract in its four forms: the file `openapi.yaml`, the router, the error codes, and what is really answered.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Value, json};
use sluicegate::error::ErrorCode;

use crate::house::{Body, Call, Event, Gate, Gateway, Script, Upstream, delete, get, openai, post};

/// CONTRACT § 12.
const CODES: &[(u16, &str)] = &[
    (
        400,
        "json_invalid query_invalid body_incomplete last_event_id_invalid auth_conflict credential_in_url host_invalid",
    ),
    (401, "auth_missing auth_invalid ticket_invalid"),
    (403, "forbidden cross_site"),
    (404, "not_found"),
    (405, "method_not_allowed"),
    (406, "not_acceptable"),
    (408, "request_timeout"),
    (409, "session_busy run_finished"),
    (410, "replay_expired"),
    (413, "body_too_large"),
    (414, "uri_too_long"),
    (415, "media_type encoding_unsupported"),
    (416, "range_invalid"),
    (417, "expectation"),
    (421, "host_not_allowed"),
    (
        422,
        "field_invalid unknown_field message_empty message_too_long session_id_invalid control_character \
           duplicate_parameter model_not_allowed agent_unknown schema_invalid idempotency_mismatch context_too_long \
           upstream_rejected",
    ),
    (429, "rate_limited too_many_runs"),
    (431, "headers_too_large"),
    (499, "cancelled"),
    (500, "internal interrupted"),
    (
        502,
        "upstream_connect upstream_tls upstream_protocol upstream_truncated upstream_error upstream_auth output_limit \
           output_invalid tool_failed",
    ),
    (
        503,
        "overloaded upstream_overloaded upstream_rate_limited store_unavailable shutting_down",
    ),
    (504, "upstream_timeout run_deadline"),
    (505, "http_version"),
];

/// Code by code.
fn codes() -> BTreeMap<String, u16> {
    let pairs = CODES
        .iter()
        .flat_map(|(status, codes)| codes.split_whitespace().map(|code| (code.to_owned(), *status)));
    pairs.collect()
}

/// `openapi.yaml`, read.
pub(crate) struct Spec(Value);

impl Spec {
    pub(crate) fn read() -> &'static Self {
        static SPEC: LazyLock<Spec> =
            LazyLock::new(|| Spec(serde_saphyr::from_str(include_str!("../../openapi.yaml")).expect("a file in YAML")));
        &SPEC
    }

    /// Every operation: its method, its path, what is said of it.
    fn operations(&self) -> Vec<(String, &str, &Value)> {
        let methods = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
        let mut all = Vec::new();
        for (path, item) in self.0["paths"].as_object().expect("paths") {
            for (method, operation) in item
                .as_object()
                .expect("a path")
                .iter()
                .filter(|(key, _)| methods.contains(&key.as_str()))
            {
                all.push((method.to_uppercase(), path.as_str(), operation));
            }
        }
        all
    }

    /// What a reference stands for.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(to) if value.as_object().is_some_and(|object| object.len() == 1) => {
                let pointer = to.strip_prefix('#').unwrap_or_else(|| panic!("{to} is elsewhere"));
                self.resolve(self.0.pointer(pointer).unwrap_or_else(|| panic!("{to} leads nowhere")))
            }
            _ => value,
        }
    }

    /// The operation that a request is for, if it is for one.
    fn operation(&self, method: &str, target: &str) -> Option<&Value> {
        let path = target.split('?').next().unwrap_or_default();
        let fits = |template: &str| {
            let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            template.len() == path.len()
                && template
                    .iter()
                    .zip(&path)
                    .all(|(name, part)| name == part || name.starts_with('{') && !part.is_empty())
        };
        let mut all = self.operations().into_iter();
        all.find(|(known, template, _)| known == method && fits(template))
            .map(|(_, _, operation)| operation)
    }

    /// The codes that a response may have.
    fn codes_of(&self, response: &Value) -> BTreeSet<String> {
        let schema = &response["content"]["application/problem+json"]["schema"];
        let parts = schema["allOf"].as_array().cloned().unwrap_or_default();
        let named = parts
            .iter()
            .filter_map(|part| part["properties"]["code"]["enum"].as_array());
        named.flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Whether a refusal is one that the file tells of. What is for no operation is not its business.
    pub(crate) fn tells_of(&self, method: &str, target: &str, status: u16, code: &str) -> Result<(), String> {
        let Some(operation) = self.operation(method, target) else {
            return Ok(());
        };
        let response = self.resolve(&operation["responses"][status.to_string()]);
        if self.codes_of(response).contains(code) {
            return Ok(());
        }
        Err(format!(
            "openapi.yaml does not tell of {status} {code} for {method} {target}"
        ))
    }

    /// What a value has against a schema of the file.
    fn objections(&self, schema: &Value, value: &Value) -> Vec<String> {
        // References in it are to the file, so it stands in the file's place.
        let mut root = json!({"allOf": [schema], "components": self.0["components"]});
        root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        let validator = jsonschema::validator_for(&root).unwrap_or_else(|error| panic!("{error} in {schema}"));
        let told = |error: jsonschema::ValidationError<'_>| {
            let text: String = error.to_string().chars().take(300).collect();
            format!("{}: {text}", error.instance_path())
        };
        validator.iter_errors(value).map(told).collect()
    }

    /// What a chunk has against the file.
    pub(crate) fn objections_to_chunk(&self, chunk: &Value) -> Vec<String> {
        self.objections(&self.0["components"]["schemas"]["StreamChunk"], chunk)
    }

    /// What a refusal has against the file; a member that the file does not name is one thing.
    pub(crate) fn objections_to_problem(&self, problem: &Value) -> Vec<String> {
        static PROBLEM: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
            let schema = json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$ref": "#/components/schemas/Problem",
                "unevaluatedProperties": false,
                "components": Spec::read().0["components"],
            });
            jsonschema::validator_for(&schema).expect("a schema")
        });
        PROBLEM
            .iter_errors(problem)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect()
    }

    /// Checks a whole answer: that the file tells of its status, type and headers, and that its body is as it says.
    pub(crate) fn check(&self, method: &str, target: &str, body: &Body) -> Result<(), String> {
        let what = format!("{method} {target} {}", body.status);
        let operation = self
            .operation(method, target)
            .ok_or(format!("no operation for {what}"))?;
        let response = self.resolve(&operation["responses"][body.status.to_string()]);
        if response.is_null() {
            return Err(format!("openapi.yaml does not tell of {what}: {:?}", body.bytes));
        }
        for name in response["headers"]
            .as_object()
            .into_iter()
            .flat_map(|headers| headers.keys())
        {
            let header = self.resolve(&response["headers"][name]);
            let Some(told) = body.headers.get(name) else {
                if matches!(name.as_str(), "Retry-After" | "X-Session-Id") || name.starts_with("RateLimit") {
                    continue;
                }
                return Err(format!("{what} has no {name}"));
            };
            let told = told.parse::<u64>().map_or_else(|_| json!(told), |number| json!(number));
            let objections = self.objections(&header["schema"], &told);
            if !objections.is_empty() {
                return Err(format!("{what}: {name}: {objections:?}"));
            }
        }
        let content = response["content"].as_object();
        let Some(told) = body.headers.get("content-type") else {
            return if content.is_none() && body.bytes.is_empty() {
                Ok(())
            } else {
                Err(format!("{what} has no type"))
            };
        };
        let bare = |kind: &str| kind.split(';').next().unwrap_or_default().trim().to_owned();
        let schema = content.into_iter().flatten().find(|(kind, _)| bare(kind) == bare(told));
        let (_, schema) =
            schema.ok_or_else(|| format!("openapi.yaml does not tell of {told} for {what}: {:?}", body.bytes))?;
        let value = if bare(told).ends_with("json") {
            body.json()
        } else {
            json!(body.text())
        };
        let objections = self.objections(&schema["schema"], &value);
        if objections.is_empty() {
            Ok(())
        } else {
            Err(format!("{what}: {objections:#?}\nin {value}"))
        }
    }
}

#[test]
fn the_file_and_the_router_know_the_same_paths() {
    let spec = Spec::read();
    let told: BTreeSet<_> = spec
        .operations()
        .into_iter()
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    let served: Vec<_> = sluicegate::http::routes()
        .iter()
        .map(|route| format!("{} {}", route.method, route.path))
        .chain(sluicegate::http::admin::PATHS.map(|path| format!("GET {path}")))
        .collect();
    let known: BTreeSet<_> = served.iter().cloned().collect();
    assert_eq!(known.len(), served.len(), "a route twice");
    assert_eq!(
        told.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "told of, and not served"
    );
    assert_eq!(
        known.difference(&told).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "served, and not told of"
    );
    let names: BTreeSet<_> = spec
        .operations()
        .iter()
        .map(|(_, _, operation)| operation["operationId"].to_string())
        .collect();
    assert_eq!(names.len(), served.len(), "an operation's name twice");
}

#[test]
fn the_code_and_the_file_and_the_contract_know_the_same_codes() {
    let spec = Spec::read();
    let promised = codes();
    let known: BTreeMap<String, u16> = ErrorCode::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), sluicegate::http::error::status(*code).0))
        .collect();
    assert_eq!(known, promised);
    assert_eq!(known.len(), ErrorCode::ALL.len(), "a code twice");
    for code in ErrorCode::ALL {
        assert_eq!(
            serde_json::to_value(code).unwrap(),
            code.as_str(),
            "as it is kept with a run"
        );
    }
    let problem = &spec.0["components"]["schemas"]["Problem"];
    let told: BTreeSet<_> = problem["properties"]["code"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(told, promised.keys().map(String::as_str).collect());
    // The table in its description, for people.
    let rows = problem["description"]
        .as_str()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut table = BTreeMap::new();
    for row in rows {
        let mut columns = row.trim_matches('|').split('|').map(str::trim);
        let status: u16 = columns.next().unwrap().parse().unwrap();
        table.extend(
            columns
                .next()
                .unwrap()
                .split(' ')
                .map(|code| (code.trim_matches('`').to_owned(), status)),
        );
    }
    assert_eq!(table, promised);
}

#[test]
fn every_operation_tells_of_its_refusals_and_of_none_that_cannot_be() {
    let spec = Spec::read();
    let promised = codes();
    let mut failed = Vec::new();
    for (method, path, operation) in spec.operations() {
        let at = format!("{method} {path}");
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            let response = spec.resolve(response);
            let status: u16 = status.parse().unwrap();
            let (codes, problem) = (
                spec.codes_of(response),
                &response["content"]["application/problem+json"],
            );
            if (status >= 400) != problem.is_object() || problem.is_object() && codes.is_empty() {
                failed.push(format!("{at} {status}: is it a problem, and which?"));
            }
            for code in &codes {
                if promised.get(code) != Some(&status) {
                    failed.push(format!("{at} {status}: {code} has another status"));
                }
            }
            let told = problem["schema"]["allOf"][1]["properties"]["status"]["enum"][0].as_u64();
            if problem.is_object() && told != Some(status.into()) {
                failed.push(format!("{at} {status}: says {told:?}"));
            }
            if !matches!(status, 414 | 431) && response["headers"]["X-Request-Id"].is_null() {
                failed.push(format!("{at} {status}: no X-Request-Id"));
            }
        }
        // What is around the routes of clients is not around those of the admin listener.
        let admin = !spec.0["paths"][path]["servers"].is_null();
        let always = ["400", "414", "417", "421", "431"].into_iter().filter(|_| !admin);
        for always in always.chain(["405", "500"]) {
            if !responses.contains_key(always) {
                failed.push(format!("{at}: no {always}"));
            }
        }
        let body = !operation["requestBody"].is_null();
        for of_bodies in ["408", "413", "415", "422"] {
            let mut parameters = operation["parameters"].as_array().unwrap().iter();
            let query = of_bodies == "422" && parameters.any(|one| spec.resolve(one)["in"] == "query");
            if responses.contains_key(of_bodies) != (body || query) {
                failed.push(format!("{at}: {of_bodies} is for what is sent"));
            }
        }
        if path.contains('{') && method != "DELETE" && !responses.contains_key("404") {
            failed.push(format!("{at}: no 404"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_code_is_told_of_where_it_can_be_an_answer() {
    let spec = Spec::read();
    let promised = codes();
    let told_by = |operation: &Value| -> BTreeSet<String> {
        let responses = operation["responses"].as_object().into_iter().flatten();
        responses
            .flat_map(|(_, response)| spec.codes_of(spec.resolve(response)))
            .collect()
    };
    let anywhere: BTreeSet<_> = spec
        .operations()
        .into_iter()
        .flat_map(|(.., one)| told_by(one))
        .collect();
    assert_eq!(anywhere, promised.keys().cloned().collect());
    // What can end a run is the answer of those who wait for its end.
    let ends = promised.iter().filter(|(_, status)| (499..505).contains(*status));
    let ends: BTreeSet<_> = ends.map(|(code, _)| code.clone()).collect();
    for path in ["/chat", "/chat/stream"] {
        let told = told_by(spec.operation("POST", path).unwrap());
        assert_eq!(ends.difference(&told).collect::<Vec<_>>(), [""; 0], "{path}");
    }
}

#[test]
fn the_file_keeps_its_own_rules() {
    fn references<'a>(value: &'a Value, all: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(object) => {
                all.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, all));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, all)),
            _ => {}
        }
    }
    let spec = Spec::read();
    assert_eq!(spec.0["openapi"], "3.1.0");
    assert_eq!(spec.0["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut used = BTreeSet::new();
    references(&spec.0, &mut used);
    let mut failed = Vec::new();
    for reference in &used {
        if spec.0.pointer(reference.trim_start_matches('#')).is_none() {
            failed.push(format!("{reference} leads nowhere"));
        }
    }
    for (kind, all) in spec.0["components"].as_object().unwrap() {
        for name in all.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            // These two are named in words: what is in a stream, event by event.
            if !used.contains(format!("#/components/{kind}/{name}").as_str()) && name != "StreamChunk" {
                failed.push(format!("{kind}/{name} is used by nobody"));
            }
        }
    }
    // Credentials are named by their names; every operation says which, or that it needs none.
    let own = spec.operations().into_iter();
    let named: BTreeSet<&String> = own
        .map(|(_, _, operation)| &operation["security"])
        .chain([&spec.0["security"]])
        .flat_map(|security| security.as_array().into_iter().flatten())
        .flat_map(|one| one.as_object().unwrap().keys())
        .collect();
    let schemes = spec.0["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(named, schemes.keys().collect());
    // Examples are examples of what they stand beside.
    let mut examples = 0;
    let media = |place: &Value| place["content"].as_object().cloned().unwrap_or_default();
    let (responses, bodies) = (
        spec.0["components"]["responses"].as_object().unwrap(),
        spec.0["components"]["requestBodies"].as_object().unwrap(),
    );
    let shared = responses
        .iter()
        .chain(bodies)
        .map(|(name, value)| (name.clone(), value));
    let own = spec.operations().into_iter().flat_map(|(method, path, operation)| {
        let at = format!("{method} {path}");
        let answers = operation["responses"].as_object().unwrap().values().map({
            let at = at.clone();
            move |answer| (at.clone(), answer)
        });
        answers.chain([(at, &operation["requestBody"])]).collect::<Vec<_>>()
    });
    for (at, place) in shared.chain(own) {
        for (kind, media) in media(place) {
            let more = media["examples"]
                .as_object()
                .into_iter()
                .flat_map(|all| all.values())
                .map(|example| &example["value"]);
            for example in more.chain(media.get("example")) {
                examples += 1;
                let objections = spec.objections(&media["schema"], example);
                if !objections.is_empty() {
                    failed.push(format!("the example of {at} ({kind}): {objections:?}"));
                }
                if kind == "text/event-stream" {
                    for line in example
                        .as_str()
                        .unwrap()
                        .lines()
                        .filter_map(|line| line.strip_prefix("data: {"))
                    {
                        let chunk: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
                        failed.extend(spec.objections(&spec.0["components"]["schemas"]["StreamChunk"], &chunk));
                    }
                }
            }
        }
    }
    assert!(examples > 15, "{examples}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Asks, checks the answer against the file, and gives it.
async fn told(
    spec: &Spec,
    failed: &mut Vec<String>,
    gateway: &Gateway,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Body {
    let call = Call::new(method, path);
    let call = match body {
        Some(body) => call.json(&body),
        None => call,
    };
    let body = call.to(gateway).await.body().await;
    failed.extend(spec.check(method, path, &body).err());
    body
}

#[tokio::test]
async fn what_is_answered_is_what_the_file_says() {
    let spec = Spec::read();
    let gate = Gate::new("after the first word");
    let call = Script::sse()
        .role()
        .send(openai::tool_delta(0, "call_1", "nobody", "{\"a\":1}"))
        .send(openai::tool_delta(1, "call_2", "nobody", "{\"a\""));
    let upstream = Upstream::start([
        openai::answer(&["Hel", "lo"]),
        openai::answer(&["Again"]),
        call.finish("tool_calls").usage(1, 2).done().end(),
        openai::answer(&["Done"]),
        Script::sse().role().say("Hel").cut(),
        Script::sse().role().say("Hel").wait(&gate).complete(),
        openai::answer(&["Not kept"]),
        Script::status(429, &[("retry-after", "7")], "{}"),
        Script::status(401, &[], "{}"),
    ])
    .await;
    let gateway = Gateway::with(&upstream)
        .toml("[providers.openai]\nmax_retries = 0")
        .start()
        .await;
    let mut failed = Vec::new();
    let f = &mut failed;

    // A whole answer, and the same told again.
    let full = json!({"message": "Hi", "session_id": "s", "user_id": "ada", "agent": "assistant", "settings": {"temperature": 0.5, "stop": ["x"]},
        "tool_choice": "auto", "context": {"a": [1]}, "response_format": {"type": "text"}, "metadata": {"k": "v"},
        "on_disconnect": "continue", "on_busy": "reject", "format": "raw", "include_reasoning": false, "store": true});
    assert_eq!(
        spec.objections(&spec.0["components"]["schemas"]["ChatRequest"], &full),
        Vec::<String>::new()
    );
    let answer = told(spec, f, &gateway, "POST", "/chat", Some(full)).await.json();
    assert_eq!(
        (&answer["content"], &answer["metadata"]["k"]),
        (&json!("Hello"), &json!("v"))
    );
    let run = format!("/runs/{}", answer["run_id"].as_str().unwrap());
    let shown = told(spec, f, &gateway, "GET", &run, None).await.json();
    assert_eq!(
        (&shown["status"], &shown["response"], &shown["last_seq"]),
        (&json!("completed"), &answer, &json!(3))
    );
    assert_eq!(
        told(
            spec,
            f,
            &gateway,
            "POST",
            "/chat/stream",
            Some(json!({"message": "Hi"}))
        )
        .await
        .text(),
        "Again"
    );

    // Every kind of event there is so far.
    let mut chunks: Vec<Event> = Vec::new();
    let tools = post(&gateway, "/chat/sse", json!({"message": "Hi", "format": "json"}))
        .await
        .transcript()
        .await;
    chunks.extend(tools.events.clone());
    let broken = post(&gateway, "/chat/sse?format=json", json!({"message": "Hi"}))
        .await
        .transcript()
        .await;
    chunks.extend(broken.events.clone());
    let kinds: BTreeSet<_> = chunks.iter().map(|chunk| chunk.event.as_str()).collect();
    assert_eq!(
        kinds,
        ["done", "error", "start", "token", "tool_call", "tool_result"].into()
    );
    for chunk in &chunks {
        let objections = spec.objections(&spec.0["components"]["schemas"]["StreamChunk"], &chunk.json());
        f.extend(
            objections
                .into_iter()
                .map(|objection| format!("the event {}: {objection} in {}", chunk.event, chunk.data)),
        );
    }
    assert_eq!(broken.terminal().json()["error"]["code"], "upstream_truncated");
    let failed_run = format!("/runs/{}", broken.events[0].run_id);
    let shown = told(spec, f, &gateway, "GET", &failed_run, None).await.json();
    assert_eq!(
        (&shown["status"], &shown["error"]["code"]),
        (&json!("failed"), &json!("upstream_truncated"))
    );

    // Started, looked at, stopped.
    let started = told(
        spec,
        f,
        &gateway,
        "POST",
        "/runs",
        Some(json!({"message": "Hi", "session_id": "t"})),
    )
    .await
    .json();
    gate.reached().await;
    let run = format!("/runs/{}", started["run_id"].as_str().unwrap());
    assert_eq!(started["events_url"], format!("{run}/events"));
    assert_eq!(
        told(spec, f, &gateway, "GET", &run, None).await.json()["status"],
        "running"
    );
    let busy = told(
        spec,
        f,
        &gateway,
        "POST",
        "/chat",
        Some(json!({"message": "Ho", "session_id": "t"})),
    )
    .await
    .json();
    assert_eq!(
        (&busy["code"], &busy["run_id"]),
        (&json!("session_busy"), &started["run_id"])
    );
    told(spec, f, &gateway, "POST", &format!("{run}/cancel"), None).await;
    let events = get(&gateway, &format!("{run}/events?format=json"))
        .await
        .transcript()
        .await;
    assert_eq!(events.codes(), ["cancelled"]);
    for chunk in &events.events {
        f.extend(spec.objections(&spec.0["components"]["schemas"]["StreamChunk"], &chunk.json()));
    }
    let shown = told(spec, f, &gateway, "GET", &run, None).await.json();
    assert_eq!(shown["status"], "cancelled");
    let after = format!("{run}/events?last_event_id={}", events.last_id().unwrap());
    assert_eq!(told(spec, f, &gateway, "GET", &after, None).await.status, 204);
    let unkept = told(
        spec,
        f,
        &gateway,
        "POST",
        "/chat",
        Some(json!({"message": "Hi", "store": false})),
    )
    .await
    .json();
    assert_eq!(unkept["session_id"], Value::Null);

    // Sessions.
    let made = told(
        spec,
        f,
        &gateway,
        "POST",
        "/sessions",
        Some(json!({"session_id": "u", "user_id": "bob", "metadata": {"a": "b"}})),
    )
    .await;
    let again = told(spec, f, &gateway, "POST", "/sessions", Some(json!({"session_id": "u"}))).await;
    let plain = told(spec, f, &gateway, "POST", "/sessions", None).await;
    assert_eq!((made.status, again.status, plain.status), (201, 200, 201));
    let page = told(spec, f, &gateway, "GET", "/sessions?limit=2", None).await.json();
    let next = page["next_cursor"].as_str().expect("more than a page").to_owned();
    told(
        spec,
        f,
        &gateway,
        "GET",
        &format!("/sessions?limit=200&cursor={next}"),
        None,
    )
    .await;
    let found = told(spec, f, &gateway, "GET", "/sessions?user_id=ada", None)
        .await
        .json();
    assert_eq!(found["sessions"].as_array().map(Vec::len), Some(1));
    told(spec, f, &gateway, "GET", "/sessions/s", None).await;
    for (session, count) in [("s", 2), ("t", 2), ("u", 0)] {
        let messages = told(spec, f, &gateway, "GET", &format!("/sessions/{session}/messages"), None)
            .await
            .json();
        assert_eq!(messages["messages"].as_array().map(Vec::len), Some(count), "{messages}");
    }
    let first = told(spec, f, &gateway, "GET", "/sessions/s/messages?limit=1", None)
        .await
        .json();
    assert!(first["next_cursor"].is_string());
    assert_eq!(told(spec, f, &gateway, "DELETE", "/sessions/s", None).await.status, 204);
    assert_eq!(told(spec, f, &gateway, "DELETE", "/sessions/s", None).await.status, 204);
    assert_eq!(delete(&gateway, "/sessions/a%2fb").await.status, 204);

    // What goes wrong.
    let limited = told(spec, f, &gateway, "POST", "/chat", Some(json!({"message": "Hi"}))).await;
    assert_eq!(
        (
            limited.status,
            &limited.json()["retry_after"],
            limited.headers.get("retry-after")
        ),
        (503, &json!(7), Some("7"))
    );
    assert_eq!(
        told(spec, f, &gateway, "POST", "/chat", Some(json!({"message": "Hi"})))
            .await
            .json()["code"],
        "upstream_auth"
    );
    for (method, path, body) in [
        ("POST", "/chat", Some(json!({"x": 1}))),
        ("GET", "/runs/x", None),
        ("GET", "/sessions/none", None),
        ("GET", "/sessions?limit=0", None),
        ("GET", "/chat/sse", None),
        ("GET", "/chat/sse?message=%FF", None),
        ("POST", "/runs?api_key=x", Some(json!({"message": "Hi"}))),
    ] {
        assert!(told(spec, f, &gateway, method, path, body).await.status >= 400);
    }
    assert_eq!(told(spec, f, &gateway, "POST", "/tickets", None).await.status, 201);
    assert_eq!(
        told(spec, f, &gateway, "GET", "/chat/sse?ticket=x", None).await.status,
        401
    );
    for path in [
        "/agents",
        "/healthz",
        "/readyz",
        "/openapi.yaml",
        "/openapi.json",
        "/docs",
    ] {
        assert_eq!(told(spec, f, &gateway, "GET", path, None).await.status, 200);
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What the file's schema of a request takes, the gateway takes, and the other way round.
#[tokio::test]
async fn the_file_and_the_gateway_take_the_same_requests() {
    let spec = Spec::read();
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[agents.assistant]\nallowed_models = [\"openai/*\"]")
        .start()
        .await;
    let image = json!({"media_type": "image/png", "data": "aGk="});
    let rows: &[(&str, Vec<Value>)] = &[
        (
            "message",
            vec![
                json!("x"),
                json!(""),
                json!(1),
                json!(null),
                json!("x".repeat(262_144)),
                json!("x".repeat(262_145)),
            ],
        ),
        (
            "session_id",
            vec![
                json!("a"),
                json!("A._:-9"),
                json!(""),
                json!("a b"),
                json!("a/b"),
                json!("x".repeat(128)),
                json!("x".repeat(129)),
                json!(1),
            ],
        ),
        (
            "user_id",
            vec![
                json!("a b"),
                json!(""),
                json!("x".repeat(256)),
                json!("x".repeat(257)),
                json!(1),
            ],
        ),
        (
            "attachments",
            vec![
                json!([]),
                json!([image]),
                json!(vec![image.clone(); 5]),
                json!([{"media_type": "image/png"}]),
                json!([{"media_type": "image/bmp", "data": "aGk="}]),
                json!({}),
            ],
        ),
        ("agent", vec![json!("assistant"), json!(1)]),
        ("model", vec![json!("openai/other"), json!(1), json!(null)]),
        (
            "settings",
            vec![
                json!({}),
                json!({"temperature": 2}),
                json!({"temperature": 2.1}),
                json!({"top_p": 0}),
                json!({"top_p": 0.1}),
                json!({"max_output_tokens": 1}),
                json!({"max_output_tokens": 0}),
                json!({"max_output_tokens": 1.5}),
                json!({"max_output_tokens": 2.0}),
                json!({"stop": []}),
                json!({"stop": ["a", "b", "c", "d"]}),
                json!({"stop": ["a", "b", "c", "d", "e"]}),
                json!({"stop": [""]}),
                json!({"stop": "a"}),
                json!({"seed": -5}),
                json!({"seed": 1.5}),
                json!({"reasoning_effort": "low"}),
                json!({"reasoning_effort": "Low"}),
                json!({"reasoning_effort": ""}),
                json!({"x": 1}),
                json!(null),
                json!([]),
            ],
        ),
        (
            "tool_choice",
            vec![
                json!("auto"),
                json!("none"),
                json!("maybe"),
                json!({}),
                json!({"name": "x", "y": 1}),
                json!(null),
            ],
        ),
        ("context", vec![json!({}), json!({"a": [null]}), json!([]), json!("a")]),
        (
            "response_format",
            vec![
                json!({"type": "text"}),
                json!({}),
                json!({"type": "xml"}),
                json!({"type": "text", "x": 1}),
                json!("text"),
            ],
        ),
        (
            "metadata",
            vec![
                json!({}),
                json!({"a": "b"}),
                json!({"a": 1}),
                json!({"a": null}),
                json!([]),
                json!({"n".repeat(64): "v".repeat(512)}),
                json!({"n".repeat(65): "v"}),
                json!({"n": "v".repeat(513)}),
                (0..16).map(|n| (n.to_string(), json!(""))).collect(),
                (0..17).map(|n| (n.to_string(), json!(""))).collect(),
            ],
        ),
        (
            "on_disconnect",
            vec![
                json!("cancel"),
                json!("grace"),
                json!("continue"),
                json!("stay"),
                json!(null),
            ],
        ),
        (
            "on_busy",
            vec![json!("reject"), json!("queue"), json!("interrupt"), json!("wait")],
        ),
        ("format", vec![json!("raw"), json!("json"), json!("xml")]),
        (
            "include_reasoning",
            vec![json!(true), json!(false), json!("true"), json!(1)],
        ),
        ("store", vec![json!(true), json!(false), json!("false"), json!(null)]),
        ("unknown", vec![json!(1)]),
        ("__proto__", vec![json!({})]),
    ];
    let schema = &spec.0["components"]["schemas"]["ChatRequest"];
    let told: BTreeSet<_> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        told.difference(&rows.iter().map(|(name, _)| *name).collect())
            .collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "a field without a row"
    );
    let mut failed = Vec::new();
    for (name, values) in rows {
        for value in values {
            let mut request = json!({"message": "Hi"});
            request[*name] = value.clone();
            let objections = spec.objections(schema, &request);
            let answer = post(&gateway, "/chat", request).await.body().await;
            if (answer.status == 200) != objections.is_empty() {
                let short: String = value.to_string().chars().take(60).collect();
                failed.push(format!(
                    "{name}: {short}: {} and {objections:?}: {:?}",
                    answer.status, answer.bytes
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
