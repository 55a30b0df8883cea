//! Tickets, for those who cannot send a header; and what pages elsewhere try with what a browser sends by itself.
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::house::{
    Call, Gate, Gateway, Process, Reader, Response, Script, Transcript, Upstream, eventually, get, openai, post,
};

fn key(name: &str) -> String {
    of(name, name)
}

/// The settings of a key of this name.
fn of(name: &str, key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{hex}\"\n")
}

/// A gateway with two callers, whose keys are their names.
async fn house(upstream: &Upstream) -> Gateway {
    let keys = format!("{}{}", key("ada"), key("bob"));
    Gateway::with(upstream).toml(&keys).start().await
}

fn with(call: Call, key: &str) -> Call {
    call.header("X-Api-Key", key)
}

async fn ticket(gateway: &impl crate::house::Place, key: &str) -> String {
    let issued = with(Call::post("/tickets"), key).to(gateway).await.expect(201).await;
    assert_eq!(issued.header("cache-control"), "no-store");
    assert_eq!(issued.header("referrer-policy"), "no-referrer");
    let issued = issued.json().await;
    assert_eq!(issued["expires_in"], 60);
    issued["ticket"].as_str().unwrap().to_owned()
}

fn ask(ticket: &str, more: &str) -> Call {
    Call::get(&format!("/chat/sse?message=Hi&ticket={ticket}{more}"))
}

/// What is told to who comes with a ticket.
async fn told(gateway: &impl crate::house::Place, ticket: &str, more: &str) -> Transcript {
    ask(ticket, more).to(gateway).await.expect(200).await.transcript().await
}

/// The one answer to a ticket that is no good.
async fn refused(answer: Response) -> Value {
    assert_eq!(answer.headers.get("www-authenticate"), Some("Bearer"));
    let mut problem = answer.expect(401).await.problem_object().await;
    assert_eq!(problem["code"], "ticket_invalid");
    problem["request_id"].take();
    problem
}

#[tokio::test]
async fn a_ticket_is_for_one_run_of_whoever_made_it() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = house(&upstream).await;
    let ticket_ = ticket(&gateway, "ada").await;
    assert!(
        Call::get("/chat/sse?message=Hi")
            .to(&gateway)
            .await
            .expect(401)
            .await
            .problem()
            .await
            == "auth_missing"
    );

    let told = told(&gateway, &ticket_, "&session_id=s").await;
    assert_eq!(
        (told.text().as_str(), told.terminal().event.as_str()),
        ("Hello", "done")
    );
    let run = told.events[0].json()["run_id"].as_str().unwrap().to_owned();
    // It is hers, with everything that belongs to it, and nobody else's.
    let look = |key: &str| with(Call::get("/sessions/s"), key);
    look("ada").to(&gateway).await.expect(200).await;
    look("bob").to(&gateway).await.expect(404).await;

    // Coming back: after an id, by header or query, at either place; after the last there is nothing.
    let rest = ask(&ticket_, "&session_id=s").header("Last-Event-ID", &format!("{run}:1"));
    let rest = rest.to(&gateway).await.expect(200).await.transcript().await;
    assert_eq!((rest.text().as_str(), rest.terminal().event.as_str()), ("lo", "done"));
    let places = [
        format!("/chat/sse?ticket={ticket_}&last_event_id={run}%3A0"),
        format!("/runs/{run}/events?ticket={ticket_}"),
        format!("/runs/{run}/events?ticket={ticket_}&last_event_id={run}:0"),
    ];
    for place in &places {
        let told = get(&gateway, place).await.expect(200).await.transcript().await;
        assert_eq!(told.text(), "Hello", "{place}");
    }
    let over = ask(&ticket_, "").header("Last-Event-ID", told.last_id().unwrap());
    over.to(&gateway).await.expect(204).await;
    assert_eq!(upstream.calls(), 1);

    // Anything else is no use of it: the same again, another message, other parameters, another run, another's run.
    let other = with(Call::post("/runs").json(&json!({"message": "Hi"})), "ada")
        .to(&gateway)
        .await;
    let other = other.expect(202).await.json().await["run_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let calls = upstream.calls();
    let unknown = refused(ask(&format!("ticket_{}", "A".repeat(43)), "").to(&gateway).await).await;
    for path in [
        format!("/chat/sse?message=Hi&session_id=s&ticket={ticket_}"),
        format!("/chat/sse?message=Hi&session_id=s&ticket={ticket_}&key=k"),
        format!("/chat/sse?message=Hello&ticket={ticket_}"),
        format!("/chat/sse?message=Hi&agent=assistant&ticket={ticket_}"),
        format!("/runs/{other}/events?ticket={ticket_}"),
        format!("/runs/{other}/events?ticket={ticket_}&last_event_id={other}:0"),
        format!("/chat/sse?ticket={ticket_}&last_event_id={other}:0"),
        format!("/chat/sse?message=Hi&ticket={}", ticket_.to_uppercase()),
        format!("/chat/sse?message=Hi&ticket={ticket_}x"),
        "/chat/sse?message=Hi&ticket=".to_owned(),
        "/chat/sse?message=Hi&ticket=%00".to_owned(),
        format!("/chat/sse?message=Hi&ticket={ticket_}&ticket=x"),
    ] {
        assert_eq!(refused_or_twice(get(&gateway, &path).await).await, unknown, "{path}");
    }
    assert!(
        upstream.calls() <= calls + 1,
        "only the run that was left alone may have been late"
    );
}

/// The same; a parameter that is there twice is refused as what it is.
async fn refused_or_twice(answer: Response) -> Value {
    if answer.status == 422 {
        assert_eq!(answer.problem().await, "duplicate_parameter");
        return refused_constant();
    }
    refused(answer).await
}

fn refused_constant() -> Value {
    json!({"type": "about:blank", "title": "The ticket is not valid", "status": 401, "detail": "This ticket is not valid.",
           "code": "ticket_invalid", "request_id": null, "retryable": false})
}

#[tokio::test]
async fn a_ticket_opens_nothing_but_streams() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = house(&upstream).await;
    let ticket_ = ticket(&gateway, "ada").await;
    for (method, path) in [
        ("POST", "/chat"),
        ("POST", "/chat/sse"),
        ("POST", "/chat/stream"),
        ("POST", "/runs"),
        ("POST", "/tickets"),
        ("GET", "/sessions"),
        ("GET", "/sessions/s"),
        ("DELETE", "/sessions/s"),
        ("GET", "/agents"),
    ] {
        let call = Call::new(method, &format!("{path}?ticket={ticket_}")).json(&json!({"message": "Hi"}));
        assert_eq!(
            call.to(&gateway).await.expect(401).await.problem().await,
            "auth_missing",
            "{method} {path}"
        );
        for header in [&format!("Bearer {ticket_}"), &format!("Ticket {ticket_}")] {
            let call = Call::new(method, path)
                .json(&json!({"message": "Hi"}))
                .header("Authorization", header);
            assert_eq!(
                call.to(&gateway).await.expect(401).await.problem().await,
                "auth_invalid",
                "{method} {path}"
            );
        }
    }
    assert_eq!(upstream.calls(), 0);
    ask(&ticket_, "").to(&gateway).await.expect(200).await;
}

#[tokio::test]
async fn of_those_who_come_at_once_with_a_ticket_one_starts_a_run() {
    let gate = Gate::new("all are there");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = house(&upstream).await;
    let ticket_ = ticket(&gateway, "ada").await;
    // With a key all are led to the run of the first,
    let all = (0..8).map(|_| ask(&ticket_, "&key=k").to(&gateway));
    let all = futures_util::future::join_all(all).await;
    gate.reached_by(1).await;
    gate.open();
    let mut runs = std::collections::BTreeSet::new();
    for answer in all {
        let told = answer.expect(200).await.transcript().await;
        assert_eq!(told.text(), "Hello");
        runs.insert(told.events[0].json()["run_id"].to_string());
    }
    assert_eq!((runs.len(), upstream.calls()), (1, 1));
    // and for as long as the log is kept.
    let told = told(&gateway, &ticket_, "&key=k").await;
    assert_eq!(told.text(), "Hello");
    assert_eq!(upstream.calls(), 1);
    refused(ask(&ticket_, "&key=other").to(&gateway).await).await;

    // Without one, the first is the only one.
    let ticket_ = ticket(&gateway, "ada").await;
    let all = (0..8).map(|_| ask(&ticket_, "").to(&gateway));
    let mut statuses: Vec<u16> = futures_util::future::join_all(all)
        .await
        .iter()
        .map(|answer| answer.status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
    eventually("the second run's call", async || (upstream.calls() == 2).then_some(())).await;
}

#[tokio::test]
async fn those_who_come_at_once_with_a_ticket_follow_one_run() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = house(&upstream).await;
    let made = ticket(&gateway, "ada").await;
    let run = |told: &Transcript| told.events[0].json()["run_id"].as_str().unwrap().to_owned();
    let (first, second) = (
        run(&told(&gateway, &made, "").await),
        run(&told(&gateway, &ticket(&gateway, "ada").await, "").await),
    );
    for _ in 0..5 {
        let made = ticket(&gateway, "ada").await;
        let follow = |run: &str| Call::get(&format!("/runs/{run}/events?ticket={made}"));
        let all = (0..8).map(|_| follow(&first).to(&gateway));
        for answer in futures_util::future::join_all(all).await {
            assert_eq!(answer.expect(200).await.transcript().await.text(), "Hello");
        }
        refused(follow(&second).to(&gateway).await).await;
    }
}

#[tokio::test]
async fn a_run_that_failed_is_not_started_again_by_its_ticket() {
    let upstream = Upstream::always(Script::sse().role().say("Hel").cut()).await;
    let gateway = house(&upstream).await;
    let ticket_ = ticket(&gateway, "ada").await;
    let first = told(&gateway, &ticket_, "&key=k").await;
    assert_eq!(first.terminal().event, "error");
    let calls = upstream.calls();
    let again = told(&gateway, &ticket_, "&key=k").await;
    assert_eq!(again.codes(), first.codes());
    assert_eq!(again.last_id(), first.last_id());
    assert_eq!(upstream.calls(), calls);
}

#[tokio::test]
async fn a_ticket_whose_run_did_not_start_has_not_been_used() {
    let gate = Gate::new("the session is free");
    let upstream = Upstream::always(Script::sse().role().say("Hello").wait(&gate).complete()).await;
    let gateway = house(&upstream).await;
    let body = json!({"message": "Hi", "session_id": "s"});
    let mut first = with(Call::post("/chat/sse").json(&body), "ada").to(&gateway).await;
    first.next_event_named("token").await;

    let ticket_ = ticket(&gateway, "ada").await;
    let busy = ask(&ticket_, "&session_id=s").to(&gateway).await.expect(409).await;
    assert_eq!(busy.problem().await, "session_busy");
    let wrong = ask(&ticket_, "&agent=nobody").to(&gateway).await.expect(422).await;
    assert_eq!(wrong.problem().await, "agent_unknown");
    for unknown in ["&user_ID=x", "&session_id=a%20b"] {
        ask(&ticket_, unknown).to(&gateway).await.expect(422).await;
    }
    // Somebody else's run is not there, and that it is not costs nothing.
    let theirs = with(Call::post("/runs").json(&json!({"message": "Hi"})), "bob")
        .to(&gateway)
        .await;
    let theirs = theirs.expect(202).await.json().await["run_id"]
        .as_str()
        .unwrap()
        .to_owned();
    for path in [
        format!("/runs/{theirs}/events?ticket={ticket_}"),
        format!("/chat/sse?ticket={ticket_}&last_event_id={theirs}:0"),
    ] {
        assert_eq!(
            get(&gateway, &path).await.expect(404).await.problem().await,
            "not_found",
            "{path}"
        );
    }
    gate.open();
    first.transcript().await;
    let told = told(&gateway, &ticket_, "&session_id=s").await;
    assert_eq!(told.terminal().event, "done");
    refused(ask(&ticket_, "&session_id=s").to(&gateway).await).await;
}

#[tokio::test]
async fn a_ticket_beside_a_key_is_of_the_same_caller() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = house(&upstream).await;
    let ticket_ = ticket(&gateway, "ada").await;
    refused(with(ask(&ticket_, ""), "bob").to(&gateway).await).await;
    let nobody = with(ask(&ticket_, ""), "nobodys").to(&gateway).await.expect(401).await;
    assert_eq!(nobody.problem().await, "auth_invalid");
    let both = with(ask(&ticket_, ""), "ada").header("Authorization", "Bearer bob");
    assert_eq!(
        both.to(&gateway).await.expect(400).await.problem().await,
        "auth_conflict"
    );
    let url = ask(&ticket_, "&api_key=ada").to(&gateway).await.expect(400).await;
    assert_eq!(url.problem().await, "credential_in_url");
    assert_eq!(upstream.calls(), 0);
    with(ask(&ticket_, ""), "ada").to(&gateway).await.expect(200).await;
}

#[tokio::test]
async fn a_ticket_lives_through_a_restart_and_dies_with_its_key() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let folder = tempfile::tempdir().unwrap();
    let start = async |keys: &str| {
        let place = folder.path().display();
        let store = format!("[store]\nurl = \"sqlite://{place}/store.db\"\n");
        Gateway::with(&upstream).toml(&format!("{store}{keys}")).start().await
    };
    let (ada, bob) = (key("ada"), key("bob"));
    let gateway = start(&format!("{ada}{bob}")).await;
    let mut tickets = Vec::new();
    for _ in 0..8 {
        tickets.push(ticket(&gateway, "ada").await);
    }
    let mut next = tickets.into_iter();
    let mut next = || next.next().unwrap();
    let used = next();
    let told = told(&gateway, &used, "").await;
    let run = told.events[0].json()["run_id"].as_str().unwrap().to_owned();
    gateway.stop().await;

    let gateway = start(&format!("{ada}{bob}")).await;
    ask(&next(), "").to(&gateway).await.expect(200).await.transcript().await;
    let back = format!("/runs/{run}/events?ticket={used}");
    let told = get(&gateway, &back).await.expect(200).await.read_as(Reader::anywhere());
    assert_eq!(
        told.transcript().await.terminal().event,
        "done",
        "its last word is kept"
    );
    gateway.stop().await;

    for gone in [
        bob.clone(),
        format!("{ada}disabled = true\n{bob}"),
        format!("{ada}expires = \"2020-01-01\"\n{bob}"),
        // Another key of the same name, and the same key of another's.
        format!("{}{bob}", of("ada", "other")),
        format!("{}{bob}", of("eve", "ada")),
        "[auth]\nallow_anonymous = true".to_owned(),
    ] {
        let gateway = start(&gone).await;
        refused(ask(&next(), "").to(&gateway).await).await;
        refused(get(&gateway, &back).await).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_ticket_is_used_once_in_all_gateways_of_a_store() {
    let Some(database) = crate::stores::Database::make().await else {
        return;
    };
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let toml = format!("[store]\nurl = \"{}\"\n{}", database.url(""), key("ada"));
    let (here, there) = (
        Gateway::with(&upstream).toml(&toml).start().await,
        Gateway::with(&upstream).toml(&toml).start().await,
    );
    for round in 1..=5 {
        let ticket_ = ticket(&here, "ada").await;
        let all = (0..8).map(|n| ask(&ticket_, "").to(if n % 2 == 0 { &here } else { &there }));
        let mut answers = futures_util::future::join_all(all).await;
        answers.sort_by_key(|answer| answer.status);
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
        let told = answers.swap_remove(0).transcript().await;
        assert_eq!((told.text().as_str(), upstream.calls()), ("Hello", round));
    }
    let ticket_ = ticket(&here, "ada").await;
    let told = ask(&ticket_, "").to(&there).await.expect(200).await.transcript().await;
    assert_eq!(told.text(), "Hello");
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn where_nobody_has_a_key_tickets_are_taken_all_the_same() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let issue = async || Call::post("/tickets").to(&gateway).await;
    let first = issue().await.expect(201).await.json().await["ticket"]
        .as_str()
        .unwrap()
        .to_owned();
    told(&gateway, &first, "").await;
    refused(ask(&first, "").to(&gateway).await).await;
    refused(ask("x", "").to(&gateway).await).await;
    // They are not to fill the store.
    let file = format!("sqlite://{}/sluicegate.db", gateway.folder().display());
    let mut db = sqlx::SqliteConnection::connect(&file).await.unwrap();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) \
         INSERT INTO tickets (id, principal, credential, expires_at, erase_after) \
         SELECT 'x' || i, 'anonymous', 'nobody', 9999999999999, 9999999999999 FROM n";
    sqlx::query(many).execute(&mut db).await.unwrap();
    issue().await.expect(201).await;
    let many = issue().await.expect(429).await;
    assert_eq!(many.header("retry-after"), "60");
    assert_eq!(many.problem().await, "rate_limited");
}

#[tokio::test]
async fn no_ticket_and_no_key_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, of("web", "canary-key")).unwrap();
    let env = [
        ("SLUICEGATE_CONFIG", file.to_str().unwrap()),
        ("SLUICEGATE__LOG__FILTER", "trace"),
    ];
    let mut gateway = Process::start(&env, &[]).await; // with the demo
    let ticket_ = ticket(&gateway, "canary-key").await;
    told(&gateway, &ticket_, "").await;
    refused(ask(&ticket_, "").to(&gateway).await).await;
    let url = get(&gateway, "/chat/sse?message=Hi&api_key=canary-key")
        .await
        .expect(400)
        .await;
    assert!(!url.body().await.text().contains("canary-key"));
    gateway.terminate().await;
    gateway.wait_exit(std::time::Duration::from_secs(25)).await;
    let log = gateway.log();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "a log that says little proves little"
    );
    assert!(!log.contains(&ticket_) && !log.contains(ticket_.trim_start_matches("ticket_")));
    assert!(!log.contains("canary-key"));
}

/// What a page elsewhere can make a browser send to a gateway on this machine that wants no key: nothing starts, and
/// nothing can be read.
#[tokio::test]
async fn a_page_elsewhere_starts_nothing_and_reads_nothing() {
    let upstream = Upstream::always(openai::answer(&["Hello"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[store]\nurl = \"memory:\"")
        .start()
        .await;
    let run = post(&gateway, "/chat", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await;
    let run = run.header("x-run-id").to_owned();
    let calls = upstream.calls();
    let from = |call: Call, origin: &str| {
        let call = call.header("Sec-Fetch-Site", "cross-site");
        if origin.is_empty() {
            call
        } else {
            call.header("Origin", origin)
        }
    };
    let body = json!({"message": "evil"}).to_string();
    // A form can send these three types and no other without asking first; `fetch` in no-cors mode, one without a type.
    let types = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ];
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
        for kind in types {
            let call = Call::post(path).body(body.clone());
            let call = if kind.is_empty() {
                call
            } else {
                call.header("Content-Type", kind)
            };
            for origin in ["https://evil.example", "null"] {
                let answer = from(call.clone(), origin).to(&gateway).await.expect(403).await;
                assert_eq!(answer.headers.get("access-control-allow-origin"), None);
                assert_eq!(answer.problem().await, "cross_site", "{path} {kind} {origin}");
            }
            // The same of a browser that does not say where its pages are from.
            let call = call.header("Origin", "https://evil.example");
            assert_eq!(
                call.to(&gateway).await.expect(415).await.problem().await,
                "media_type",
                "{path} {kind}"
            );
        }
        let preflight = Call::new("OPTIONS", path)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "content-type");
        let answer = from(preflight, "https://evil.example").to(&gateway).await;
        assert_eq!(answer.headers.get("access-control-allow-origin"), None, "{path}");
    }
    // An image, a script, a link, a frame, `EventSource`: GETs, most of them without an Origin; and what needs no body.
    let mine = format!("/runs/{run}");
    for (method, path, accept, mode) in [
        ("GET", "/chat/sse?message=evil", "image/avif,image/webp,*/*", "no-cors"),
        ("GET", "/chat/sse?message=evil", "text/html,*/*;q=0.8", "navigate"),
        ("GET", "/chat/sse?message=evil", "text/event-stream", "cors"),
        ("GET", &format!("{mine}/events"), "*/*", "no-cors"),
        ("GET", &format!("{mine}/events"), "text/event-stream", "cors"),
        ("GET", &mine, "*/*", "no-cors"),
        ("GET", "/sessions", "*/*", "navigate"),
        ("GET", "/sessions/s/messages", "*/*", "no-cors"),
        ("GET", "/agents", "*/*", "no-cors"),
        (
            "GET",
            "/artifacts/7c9e6679-7425-40de-944b-e07fc1f90ae7",
            "image/*,*/*",
            "no-cors",
        ),
        ("POST", "/tickets", "*/*", "no-cors"),
        ("POST", "/sessions", "*/*", "no-cors"),
        ("POST", &format!("{mine}/cancel"), "*/*", "no-cors"),
    ] {
        for origin in ["", "null", "https://evil.example"] {
            let call = Call::new(method, path)
                .header("Accept", accept)
                .header("Sec-Fetch-Mode", mode);
            let answer = from(call, origin).to(&gateway).await.expect(403).await;
            assert_eq!(
                answer.headers.get("access-control-allow-origin"),
                None,
                "{path} {origin}"
            );
            assert_eq!(answer.problem().await, "cross_site", "{path} {origin}");
        }
    }
    // A WebSocket's beginning, and `EventSource` without TLS: a browser says whose page it is, and nothing else.
    for origin in ["null", "https://evil.example", "http://127.0.0.1.evil.example"] {
        for upgrade in [None, Some("websocket")] {
            let call = Call::get("/chat/sse?message=evil").header("Origin", origin);
            let call = match upgrade {
                Some(protocol) => call.header("Upgrade", protocol).header("Connection", "Upgrade"),
                None => call,
            };
            let answer = call.to(&gateway).await.expect(403).await;
            assert_eq!(answer.problem().await, "cross_site", "{origin} {upgrade:?}");
        }
    }
    for purpose in [
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Moz", "prefetch"),
    ] {
        let call = Call::get("/chat/sse?message=evil").header(purpose.0, purpose.1);
        assert_eq!(
            call.to(&gateway).await.expect(403).await.problem().await,
            "cross_site",
            "{purpose:?}"
        );
    }
    // A link to a file may be followed, and so may one to a page that is for everybody.
    let file = Call::get("/artifacts/7c9e6679-7425-40de-944b-e07fc1f90ae7").header("Sec-Fetch-Mode", "navigate");
    from(file, "").to(&gateway).await.expect(404).await;
    from(Call::get("/docs"), "").to(&gateway).await.expect(200).await;
    // A name of the page's own that leads here (DNS rebinding): then the page is of the same site, and the name is wrong.
    for path in ["/chat", "/tickets", "/chat/sse?message=evil", "/sessions"] {
        let method = if path.contains('?') || path == "/sessions" {
            "GET"
        } else {
            "POST"
        };
        let call = Call::new(method, path)
            .json(&json!({"message": "evil"}))
            .header("Host", "evil.example:8080")
            .header("Origin", "http://evil.example:8080")
            .header("Sec-Fetch-Site", "same-origin");
        assert_eq!(
            call.to(&gateway).await.expect(421).await.problem().await,
            "host_not_allowed",
            "{path}"
        );
    }
    assert_eq!(upstream.calls(), calls);
    // A page of this machine's is welcome.
    let ours = Call::get("/chat/sse?message=Hi")
        .header("Origin", "http://localhost:5173")
        .header("Sec-Fetch-Site", "cross-site");
    ours.to(&gateway).await.expect(200).await;
}
