//! Requests a minute, and what the headers say of them.
use super::*;

#[tokio::test]
async fn a_burst_of_the_limit_is_fine_and_one_more_is_told_when_to_come() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let web = Key::of("web", "requests_per_minute = 5");
    let recipe = Gateway::with(&upstream).toml(&web.toml);
    let gateway = recipe.toml(meters::WATCHED).start().await;
    let begun = Instant::now();
    for (left, path) in [(4, "/chat"), (3, "/chat/stream"), (2, "/chat/sse"), (1, "/runs")] {
        let answer = web.post(&gateway, path, hi()).await;
        assert!(matches!(answer.status, 200 | 202), "{path}: {}", answer.status);
        let (limit, told, reset) = standing(&answer);
        assert_eq!((limit, told), (5, left), "{path}");
        assert!((55..=60).contains(&reset), "{reset}");
    }
    // What is refused for another reason was asked for too.
    let wrong = web
        .post(&gateway, "/chat", json!({"massage": "Hi"}))
        .await
        .expect(422)
        .await;
    assert_eq!(standing(&wrong).1, 0);
    let calls = upstream.calls();
    for _ in 0..20 {
        let answer = web.post(&gateway, "/chat", hi()).await;
        let (limit, left, reset) = standing(&answer);
        assert_eq!((limit, left), (5, 0));
        assert_eq!(refused(answer, 429, "rate_limited").await, reset);
        assert!(reset <= 60 && Duration::from_secs(reset) + begun.elapsed() >= Duration::from_secs(60));
    }
    assert_eq!(upstream.calls(), calls);
    assert_eq!(Meters::of(&gateway.admin()).await.get("rate_limited_total"), 20.0);
}

#[tokio::test]
async fn keys_of_two_callers_do_not_share_and_two_keys_of_one_do() {
    let gateway = |keys: &[&Key]| {
        let toml: String = keys.iter().map(|key| &*key.toml).collect();
        async move { Gateway::with(&closed_port()).toml(&toml).start().await }
    };
    let two = "requests_per_minute = 2";
    let (old, new, other) = (Key::of("web", two), Key::of("web", two), Key::of("other", two));
    let free = Key::of("free", "requests_per_minute = 0");
    let gateway = gateway(&[&old, &new, &other, &free]).await;
    assert_eq!(standing(&old.get(&gateway, "/agents").await).1, 1);
    assert_eq!(standing(&new.get(&gateway, "/agents").await).1, 0);
    for key in [&old, &new] {
        refused(key.get(&gateway, "/agents").await, 429, "rate_limited").await;
    }
    assert_eq!(standing(&other.get(&gateway, "/agents").await).1, 1);
    for _ in 0..10 {
        let answer = free.get(&gateway, "/agents").await.expect(200).await;
        assert!(answer.headers.get("ratelimit-limit").is_none());
    }
    // Who is not known is not counted, and does not use up what others have.
    for _ in 0..10 {
        let stranger = get(&gateway, "/agents").await.expect(401).await;
        assert!(stranger.headers.get("ratelimit-limit").is_none());
    }
    assert_eq!(standing(&other.get(&gateway, "/agents").await).1, 0);
    // Nor are those that nobody has to be for.
    get(&gateway, "/healthz").await.expect(200).await;
}

#[tokio::test]
async fn the_default_is_for_whoever_has_no_limit_of_its_own() {
    let gateway = Gateway::with(&closed_port())
        .toml("[limits]\nrequests_per_minute = 1")
        .start()
        .await;
    assert_eq!(standing(&get(&gateway, "/agents").await.expect(200).await), (1, 0, 60));
    refused(get(&gateway, "/agents").await, 429, "rate_limited").await;
}

/// B044: who sends a request is its key, whatever it says of where it comes from.
#[tokio::test]
async fn a_thousand_made_up_addresses_are_one_caller() {
    let gateway = Gateway::with(&closed_port())
        .toml("[auth]\nallow_anonymous = true\n[limits]\nrequests_per_minute = 3")
        .start()
        .await;
    let mut admitted = 0;
    for at in 0..1000 {
        let address = format!("198.51.{}.{}", at / 250, at % 250);
        let mut call = Call::get("/agents");
        for name in ["X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"] {
            call = call.header(name, &address);
        }
        let answer = call.header("Forwarded", &format!("for={address}")).to(&gateway).await;
        match answer.status {
            200 => admitted += 1,
            _ => drop(refused(answer, 429, "rate_limited").await),
        }
    }
    assert_eq!(admitted, 3);
}

#[tokio::test]
async fn who_reads_on_or_cancels_is_let_in_beyond_the_limit() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of("web", "requests_per_minute = 1");
    let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
    let (stream, run) = web.begin(&gateway, hi()).await;
    refused(web.post(&gateway, "/chat/sse", hi()).await, 429, "rate_limited").await;
    let id = format!("{run}:0");
    let again = |call: Call| web.on(call.header("Last-Event-ID", &id)).to(&gateway);
    let by_query = format!("/chat/sse?last_event_id={}", id.replace(':', "%3A"));
    for _ in 0..20 {
        for call in [
            Call::get("/chat/sse?message=Hi"),
            Call::post("/chat/sse").json(&hi()),
            Call::get(&format!("/runs/{run}/events")),
        ] {
            let mut answer = again(call).await.expect(200).await;
            assert_eq!(standing(&answer).1, 0, "and it is told how it stands");
            assert_eq!(answer.next_event().await.event, "token");
        }
        let answer = web.get(&gateway, &by_query).await.expect(200).await;
        assert_eq!(answer.read_as(Reader::after(&id)).next_event().await.event, "token");
        web.get(&gateway, &format!("/runs/{run}/events"))
            .await
            .expect(200)
            .await;
    }
    // A name for the last event that is none would start a run.
    for call in [
        Call::post("/chat/sse").json(&hi()).header("Last-Event-ID", ""),
        Call::get("/chat/sse?message=Hi&last_event_id="),
        Call::get("/chat/sse?message=Hi&last_event_id=").header("Last-Event-ID", ""),
    ] {
        refused(web.on(call).to(&gateway).await, 429, "rate_limited").await;
    }
    // An empty header says nothing; what the query says counts.
    let by_query = Call::get(&by_query).header("Last-Event-ID", "");
    web.on(by_query).to(&gateway).await.expect(200).await;
    for _ in 0..3 {
        let cancel = Call::post(&format!("/runs/{run}/cancel"));
        web.on(cancel).to(&gateway).await.expect(200).await;
    }
    assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn reading_on_has_a_bound_too() {
    let web = Key::of("web", "requests_per_minute = 1");
    let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
    let run = "0199f0c2-7d1e-7a34-9c55-0b6f6f1f2a11";
    let mut connection = Connection::open(&gateway).await;
    for at in 0..601 {
        let answer = connection
            .call(web.on(Call::post(&format!("/runs/{run}/cancel"))))
            .await;
        assert_eq!(answer.status, if at < 600 { 404 } else { 429 }, "{at}");
        connection = answer.body_and_connection().await.1;
    }
    web.get(&gateway, "/agents").await.expect(200).await;
}

#[tokio::test]
async fn who_comes_with_a_ticket_is_somebody_who_comes_back() {
    let web = Key::of("web", "requests_per_minute = 1");
    let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
    let issued = web.post(&gateway, "/tickets", json!({})).await.expect(201).await;
    let ticket = issued.json().await["ticket"].as_str().unwrap().to_owned();
    // Each of these comes to nothing, so the ticket could be tried for ever.
    let try_it = Call::get(&format!(
        "/runs/0199f0c2-7d1e-7a34-9c55-0b6f6f1f2a11/events?ticket={ticket}"
    ));
    let mut connection = Connection::open(&gateway).await;
    for at in 0..601 {
        let answer = connection.call(try_it.clone()).await;
        assert_eq!(answer.status, if at < 600 { 404 } else { 429 }, "{at}");
        connection = answer.body_and_connection().await.1;
    }
}

/// A minute that is waited for, because nothing else shows that it ends: three times the limit gets the limit.
#[tokio::test]
async fn after_a_minute_there_is_room_again_for_as_many() {
    let web = Key::of("web", "requests_per_minute = 3");
    let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
    let begun = Instant::now();
    let mut wait = 0;
    for at in 0..9 {
        let answer = web.get(&gateway, "/agents").await;
        match at {
            0..3 => assert_eq!(answer.status, 200),
            _ => wait = refused(answer, 429, "rate_limited").await,
        }
    }
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert!(begun.elapsed() < Duration::from_secs(63));
    for left in (0..3).rev() {
        assert_eq!(standing(&web.get(&gateway, "/agents").await.expect(200).await).1, left);
    }
    refused(web.get(&gateway, "/agents").await, 429, "rate_limited").await;
}
