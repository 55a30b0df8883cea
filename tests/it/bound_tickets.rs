//! Tickets that are bound to a session, a user, an agent, a run or a file: for nothing else are they any good.
use serde_json::{Value, json};

use crate::house::{Call, Gate, Gateway, Place, Script, Upstream, get, openai, post};

const AGENTS: &str = "[agents.tutor]\nmodel = \"openai/test-model\"\ninstructions = \"You are a tutor.\"";

/// A gateway in memory whose demo writes files.
const DEMO: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"\"\n";
const DEMO_AGENT: &str = "[store]\nurl = \"memory:\"\n[artifacts]\nurl = \"memory:\"\n\
    [agents.assistant]\nmodel = \"demo\"\ntools = [\"write_file\"]\n[providers.demo]\nkind = \"demo\"";

fn web(upstream: &Upstream) -> crate::house::Recipe {
    Gateway::with(upstream).toml(AGENTS).key("web", "web", "")
}

fn as_web(call: Call) -> Call {
    call.header("X-Api-Key", "web")
}

/// A ticket that is bound to this.
async fn bound(gateway: &impl Place, to: Value) -> String {
    let issued = as_web(Call::post("/tickets").json(&to)).to(gateway).await;
    let issued = issued.expect(201).await.json().await;
    issued["ticket"].as_str().unwrap().to_owned()
}

/// Whether a ticket that is bound so is good for this; each try has a ticket of its own.
async fn status(gateway: &impl Place, to: &Value, path: &str) -> u16 {
    let ticket = bound(gateway, to.clone()).await;
    let sign = if path.contains('?') { '&' } else { '?' };
    let answer = get(gateway, &format!("{path}{sign}ticket={ticket}")).await;
    let status = answer.status;
    match status {
        401 => assert_eq!(answer.problem().await, "ticket_invalid", "{path}"),
        200 => drop(answer.body().await),
        _ => {}
    }
    status
}

async fn chat(gateway: &impl Place, body: Value) -> Value {
    let answer = as_web(Call::post("/chat").json(&body)).to(gateway).await;
    answer.expect(200).await.json().await
}

async fn refuses_everything_else(gateway: &impl Place) {
    let hers = chat(
        gateway,
        json!({"message": "Hi", "session_id": "hers", "user_id": "ada"}),
    )
    .await;
    let his = chat(
        gateway,
        json!({"message": "Hi", "session_id": "his", "user_id": "bob", "agent": "tutor"}),
    )
    .await;
    let run = |answer: &Value| answer["run_id"].as_str().unwrap().to_owned();
    let (hers, his) = (run(&hers), run(&his));

    let ask = |more: &str| format!("/chat/sse?message=Hi{more}");
    let events = |run: &str| format!("/runs/{run}/events");
    let resume = |run: &str| format!("/chat/sse?last_event_id={run}:0");
    let session = json!({"session_id": "hers"});
    let user = json!({"user_id": "ada"});
    let both = json!({"session_id": "hers", "user_id": "ada"});
    let agent = json!({"agent": "assistant"});
    let one_run = json!({"run_id": hers});
    let other = "01920000-0000-7000-8000-000000000001";
    for (to, path, status_) in [
        (&session, ask(""), 200),
        (&session, ask("&session_id=hers"), 200),
        (&session, ask("&session_id=hers&user_id=ada"), 200),
        (&session, ask("&session_id=his"), 401),
        (&session, ask("&session_id=new"), 401),
        (&session, events(&hers), 200),
        (&session, resume(&hers), 200),
        (&session, events(&his), 401),
        (&session, resume(&his), 401),
        (&session, events(other), 401),
        (&session, "/sessions/hers/events".to_owned(), 204),
        (&session, "/sessions/his/events".to_owned(), 401),
        (&both, ask(""), 200),
        (&both, ask("&user_id=bob"), 401),
        (&both, ask("&session_id=his&user_id=ada"), 401),
        (&user, ask(""), 200),
        (&user, ask("&session_id=hers"), 200),
        (&user, ask("&user_id=bob"), 401),
        (&user, ask("&session_id=his"), 401),
        (&user, events(&hers), 200),
        (&user, events(&his), 401),
        (&user, "/sessions/his/events".to_owned(), 401),
        (&agent, ask(""), 200),
        (&agent, ask("&agent=assistant"), 200),
        (&agent, ask("&agent=tutor"), 401),
        (&agent, events(&his), 401),
        (&one_run, events(&hers), 200),
        (&one_run, resume(&hers), 200),
        (&one_run, events(&his), 401),
        (&one_run, ask(""), 401),
        (
            &json!({"artifact_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7"}),
            ask(""),
            401,
        ),
        (
            &json!({"artifact_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7"}),
            events(&hers),
            401,
        ),
        (&json!({"run_id": hers, "session_id": "his"}), events(&hers), 401),
        (&json!({}), events(&his), 200),
    ] {
        assert_eq!(status(gateway, to, &path).await, status_, "{to} {path}");
    }
    // Without a session id the run goes on in the session of the binding, as that user's.
    let ticket = bound(
        gateway,
        json!({"session_id": "third", "user_id": "ada", "agent": "tutor"}),
    )
    .await;
    let told = get(gateway, &format!("/chat/sse?message=Hi&ticket={ticket}")).await;
    let told = told.expect(200).await.transcript().await;
    let start = told.events[0].json();
    assert_eq!(
        (&start["session_id"], &start["agent"]),
        (&json!("third"), &json!("tutor"))
    );
    let third = as_web(Call::get("/sessions/third")).to(gateway).await.expect(200).await;
    assert_eq!(third.json().await["user_id"], "ada");
    // The run that it began is resumed with it, another one not.
    let run = start["run_id"].as_str().unwrap();
    for (run, status) in [(run, 200), (&hers, 401)] {
        let again =
            Call::get(&format!("/chat/sse?message=Hi&ticket={ticket}")).header("Last-Event-ID", &format!("{run}:0"));
        again.to(gateway).await.expect(status).await;
    }
}

#[tokio::test]
async fn a_bound_ticket_is_good_for_nothing_else() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    for store in ["", "[store]\nurl = \"memory:\"\n[artifacts]\nurl = \"memory:\""] {
        refuses_everything_else(&web(&upstream).toml(store).start().await).await;
    }
}

#[tokio::test]
async fn a_bound_ticket_is_good_for_nothing_else_in_postgres() {
    let Some(database) = crate::stores::Database::make().await else {
        return;
    };
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let store = format!("[store]\nurl = \"{}\"", database.url(""));
    let gateway = web(&upstream).toml(&store).start().await;
    refuses_everything_else(&gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_binding_is_checked_when_the_ticket_is_made() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = web(&upstream).start().await;
    for (to, code, field) in [
        (json!({"session": "hers"}), "unknown_field", "session"),
        (json!({"message": "Hi"}), "unknown_field", "message"),
        (json!({"session_id": "a b"}), "session_id_invalid", "session_id"),
        (json!({"session_id": 1}), "field_invalid", "session_id"),
        (json!({"user_id": ""}), "field_invalid", "user_id"),
        (json!({"agent": "nobody"}), "agent_unknown", "agent"),
        (json!({"run_id": "x"}), "field_invalid", "run_id"),
        (json!({"artifact_id": "../x"}), "field_invalid", "artifact_id"),
    ] {
        let refused = as_web(Call::post("/tickets").json(&to))
            .to(&gateway)
            .await
            .expect(422)
            .await;
        let problem = refused.problem_object().await;
        assert_eq!(
            (&problem["code"], &problem["field"]),
            (&json!(code), &json!(field)),
            "{to}"
        );
    }
    let list = as_web(Call::post("/tickets").json(&json!([]))).to(&gateway).await;
    assert_eq!(list.expect(422).await.problem().await, "field_invalid");
    let text = as_web(Call::post("/tickets").body("session_id=hers"))
        .to(&gateway)
        .await;
    assert_eq!(text.expect(415).await.problem().await, "media_type");
    as_web(Call::post("/tickets")).to(&gateway).await.expect(201).await;
}

#[tokio::test]
async fn a_reloaded_page_finds_the_answer_with_a_ticket_for_its_session() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = web(&upstream).start().await;
    let body = json!({"message": "Hi", "session_id": "hers"});
    let mut first = as_web(Call::post("/chat/sse").json(&body)).to(&gateway).await;
    first.next_event_named("token").await;
    let run = first.header("x-run-id").to_owned();

    let look = async || {
        as_web(Call::get("/sessions/hers"))
            .to(&gateway)
            .await
            .expect(200)
            .await
            .json()
            .await
    };
    assert_eq!(look().await["active_run"], run.as_str());
    let ticket = bound(&gateway, json!({"session_id": "hers"})).await;
    let path = format!("/sessions/hers/events?ticket={ticket}");
    let mut reloaded = get(&gateway, &path).await.expect(200).await;
    assert_eq!(reloaded.header("x-run-id"), run);
    reloaded.next_event_named("token").await;
    gate.open();
    let told = reloaded.transcript().await;
    assert_eq!(
        (told.text().as_str(), told.terminal().event.as_str()),
        ("Hello", "done")
    );
    first.transcript().await;
    // It comes back, and hears that there is no more; the run is not the session's any longer.
    for (seq, status) in [("0", 200), (told.last_id().unwrap().split(':').nth(1).unwrap(), 204)] {
        let again = Call::get(&path).header("Last-Event-ID", &format!("{run}:{seq}"));
        again.to(&gateway).await.expect(status).await;
    }
    get(&gateway, &path).await.expect(204).await;
    assert_eq!(look().await["active_run"], Value::Null);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn the_events_of_a_session_are_those_of_its_active_run() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let body = json!({"message": "Hi", "session_id": "s", "user_id": "ada"});
    let mut first = post(&gateway, "/chat/sse", body.clone()).await;
    first.next_event_named("token").await;
    let busy = post(&gateway, "/chat", body)
        .await
        .expect(409)
        .await
        .problem_object()
        .await;
    assert!(busy["detail"].as_str().unwrap().contains("`on_busy`"), "{busy}");

    let mut whole = get(&gateway, "/sessions/s/events?format=json&user_id=ada")
        .await
        .expect(200)
        .await;
    whole.next_event_named("token").await;
    gate.open();
    assert_eq!(whole.transcript().await.text(), "Hello");
    let told = first.transcript().await;
    get(&gateway, "/sessions/s/events").await.expect(204).await;
    for path in ["/sessions/never-made/events", "/sessions/s/events?user_id=bob"] {
        assert_eq!(
            get(&gateway, path).await.expect(404).await.problem().await,
            "not_found",
            "{path}"
        );
    }
    let other = post(&gateway, "/chat", json!({"message": "Hi", "session_id": "t"})).await;
    other.expect(200).await.body().await;
    let elsewhere = Call::get("/sessions/t/events").header("Last-Event-ID", told.last_id().unwrap());
    assert_eq!(
        elsewhere.to(&gateway).await.expect(400).await.problem().await,
        "last_event_id_invalid"
    );
    let head = Call::new("HEAD", "/sessions/s/events").to(&gateway).await;
    assert_eq!(head.status, 405);
}

#[tokio::test]
async fn behind_a_prefix_answers_name_the_public_address() {
    let public = "https://ai.example/gateway";
    let toml = format!("{DEMO}public_url = \"{public}/\"\n{DEMO_AGENT}");
    let gateway = Gateway::start(&toml).await;
    let begun = post(&gateway, "/runs", json!({"message": "Hi"}))
        .await
        .expect(202)
        .await;
    let place = format!("{public}/runs/{}", begun.header("x-run-id"));
    assert_eq!(begun.header("location"), place);
    assert_eq!(begun.json().await["events_url"], format!("{place}/events"));
    let body = json!({"message": "Write a short report as report.md"});
    let transcript = post(&gateway, "/chat/sse", body)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    let done = transcript.terminal().json();
    let file = &done["artifact_files"][0];
    assert_eq!(
        file["url"],
        format!("{public}/artifacts/{}", file["id"].as_str().unwrap())
    );
}

#[tokio::test]
async fn a_ticket_downloads_one_file_once() {
    let gateway = Gateway::start(&format!("{DEMO}{DEMO_AGENT}")).await;
    let file = async |session: &str| {
        let body = json!({"message": "Write a short report as report.md", "session_id": session});
        let made = post(&gateway, "/chat", body).await.expect(200).await.json().await;
        (
            made["artifact_files"][0]["id"].as_str().expect("a file").to_owned(),
            made["run_id"].as_str().unwrap().to_owned(),
        )
    };
    let ((hers, run), (his, other)) = (file("hers").await, file("his").await);
    let ticket = async |to: Value| {
        let issued = Call::post("/tickets")
            .json(&to)
            .to(&gateway)
            .await
            .expect(201)
            .await
            .json()
            .await;
        issued["ticket"].as_str().unwrap().to_owned()
    };
    let place = |id: &str, ticket: &str| format!("/artifacts/{id}?ticket={ticket}");
    for (to, id, status) in [
        (json!({"artifact_id": hers}), &hers, 200),
        (json!({"artifact_id": hers}), &his, 401),
        (json!({"run_id": run}), &hers, 200),
        (json!({"run_id": other}), &hers, 401),
        (json!({"session_id": "hers"}), &hers, 200),
        (json!({"session_id": "hers"}), &his, 401),
        (json!({"user_id": "bob"}), &hers, 401),
        (json!({"agent": "assistant"}), &hers, 200),
        (json!({}), &his, 200),
    ] {
        let ticket = ticket(to.clone()).await;
        // What sends no file is no use of the ticket.
        Call::new("HEAD", &place(id, &ticket))
            .to(&gateway)
            .await
            .expect(status)
            .await;
        if status == 200 {
            let beyond = Call::get(&place(id, &ticket)).header("Range", "bytes=999999-");
            beyond.to(&gateway).await.expect(416).await;
        }
        get(&gateway, &place(id, &ticket)).await.expect(status).await;
        let again = get(&gateway, &place(id, &ticket)).await.expect(401).await;
        assert_eq!(again.problem().await, "ticket_invalid", "{to}");
    }
    // One that was used for a file starts nothing, and the other way round.
    let used = ticket(json!({})).await;
    get(&gateway, &place(&hers, &used)).await.expect(200).await;
    get(&gateway, &format!("/chat/sse?message=Hi&ticket={used}"))
        .await
        .expect(401)
        .await;
    let used = ticket(json!({})).await;
    get(&gateway, &format!("/runs/{run}/events?ticket={used}"))
        .await
        .expect(200)
        .await
        .body()
        .await;
    get(&gateway, &place(&hers, &used)).await.expect(401).await;
    let unknown = ticket(json!({})).await;
    let nothing = get(&gateway, &place("7c9e6679-7425-40de-944b-e07fc1f90ae7", &unknown)).await;
    assert_eq!(nothing.expect(404).await.problem().await, "not_found");
    get(&gateway, &place(&hers, &unknown)).await.expect(200).await;
}
