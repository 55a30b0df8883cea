//! Who asks, and for whose.
use super::*;

pub(super) fn rows() -> Vec<Row> {
    let id = "01920000-0000-7000-8000-000000000001";
    let mut rows = vec![
        row(
            "B038 two Authorizations",
            send("/chat", &["Authorization: Bearer a", "Authorization: Bearer b"], GOOD),
            400,
            "auth_conflict",
        ),
        row(
            "B038 two credentials that differ",
            send(
                "/chat",
                &[&format!("Authorization: Bearer {CANARY}"), "X-Api-Key: b"],
                GOOD,
            ),
            400,
            "auth_conflict",
        ),
        row(
            "B045 cross-site",
            ask("GET", "/chat/sse?message=Hi", &["Sec-Fetch-Site: cross-site"]),
            403,
            "cross_site",
        ),
        row(
            "B045 cross-site, from a foreign page",
            ask(
                "GET",
                "/chat/sse?message=Hi",
                &["Sec-Fetch-Site: cross-site", "Origin: https://evil.example"],
            ),
            403,
            "cross_site",
        ),
    ];
    for name in [
        "api_key",
        "API_KEY",
        "apikey",
        "access_token",
        "token",
        "authorization",
        "api%5Fkey",
        "api-key",
        "x_api_key",
        "X-Api-Key",
        "x%2Dapi%2dkey",
        "Access-Token",
        "bearer",
    ] {
        rows.push(row(
            format!("B039 {name}"),
            send(&format!("/chat?{name}={CANARY}"), &[], GOOD),
            400,
            "credential_in_url",
        ));
        rows.push(row(
            format!("B039 {name} in GET"),
            ask("GET", &format!("/chat/sse?message=Hi&{name}={CANARY}"), &[]),
            400,
            "credential_in_url",
        ));
    }
    // Unknown, foreign and impossible: the same 404 (B042, B043).
    for (method, path) in [
        ("GET", format!("/runs/{id}")),
        ("GET", format!("/runs/{id}/events")),
        ("POST", format!("/runs/{id}/cancel")),
        ("GET", "/runs/x".into()),
        ("GET", "/runs/%FF".into()),
        ("GET", "/runs/..%2f".into()),
        ("GET", format!("/runs/{id}%00")),
        ("GET", format!("/runs/{}", id.to_uppercase().replace('0', "A"))),
        ("POST", "/runs/x/cancel".into()),
        ("GET", "/runs/%C3%28/events".into()),
        ("GET", "/sessions/none".into()),
        ("GET", "/sessions/none/messages".into()),
        ("GET", "/sessions/a%2fb".into()),
        ("GET", "/sessions/%FF".into()),
        ("GET", "/sessions/%ff/messages".into()),
        ("GET", "/artifacts/01920000-0000-4000-8000-000000000001".into()),
        ("GET", "/ticket".into()),
    ] {
        rows.push(row(
            format!("B042 {method} {path}"),
            ask(method, &path, &[]),
            404,
            "not_found",
        ));
    }
    for path in ["/chat/sse", &format!("/runs/{id}/events")] {
        rows.push(row(
            format!("B043 {path}"),
            ask("GET", path, &[&format!("Last-Event-ID: {id}:0")]),
            404,
            "not_found",
        ));
    }
    rows.push(row(
        "B043 POST",
        send("/chat/sse", &[&format!("Last-Event-ID: {id}:0")], GOOD),
        404,
        "not_found",
    ));
    rows.push(row(
        "B043 in the query",
        ask("GET", &format!("/chat/sse?last_event_id={id}:0"), &[]),
        404,
        "not_found",
    ));
    rows
}

#[tokio::test]
async fn credentials_that_contradict_and_what_is_nobodys_are_refused_before_anything_runs() {
    refused_all(rows()).await;
}

/// A key that may do everything.
pub(super) const ALICE: &str = "alice-canary-7f3a";
/// One that may ask one agent.
const NARROW: &str = "narrow-canary-7f3a";
/// One whose time is over, and one that was switched off.
const GONE: &str = "gone-canary-7f3a";
const OFF: &str = "off-canary-7f3a";

/// A gateway that knows these, and an upstream that counts.
pub(super) async fn keyed_house() -> (Upstream, Gateway) {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let recipe = Gateway::with(&upstream)
        .toml("[agents.assistant]\nallowed_models = [\"openai/other\"]\n[agents.helper]\nmodel = \"openai/test-model\"")
        .key("alice", ALICE, "")
        .key("narrow", NARROW, "agents = [\"helper\"]")
        .key("gone", GONE, "expires = \"2020-01-01\"")
        .key("off", OFF, "disabled = true");
    (upstream, recipe.start().await)
}

/// What a gateway refuses that wants a key.
pub(super) fn keyed_rows() -> Vec<Row> {
    let id = "01920000-0000-7000-8000-000000000001";
    let bearer = |key: &str| format!("Authorization: Bearer {key}");
    let mut rows = Vec::new();
    for (method, path) in [
        ("POST", "/chat"),
        ("POST", "/chat/stream"),
        ("POST", "/chat/sse"),
        ("GET", "/chat/sse?message=Hi"),
        ("POST", "/runs"),
        ("GET", &format!("/runs/{id}")),
        ("GET", &format!("/runs/{id}/events")),
        ("POST", &format!("/runs/{id}/cancel")),
        ("POST", "/tickets"),
        ("GET", "/agents"),
        ("GET", "/sessions"),
        ("POST", "/sessions"),
        ("GET", "/sessions/s/messages"),
        ("DELETE", "/sessions/s"),
        ("GET", "/artifacts/01920000-0000-4000-8000-000000000001"),
    ] {
        let bytes = match method {
            "POST" => send(path, &[], GOOD),
            _ => ask(method, path, &[]),
        };
        rows.push(row(format!("B032 {method} {path}"), bytes, 401, "auth_missing"));
    }
    let (long, twice) = ("k".repeat(8 << 10), format!("{ALICE} {ALICE}"));
    let last = format!("{}b", &ALICE[..ALICE.len() - 1]);
    let spelled = [
        ("B033 no key", "Authorization: Bearer".to_owned()),
        ("B033 blanks", "Authorization: Bearer  ".to_owned()),
        ("B033 Basic", "Authorization: Basic YTpi".to_owned()),
        ("B033 Token", format!("Authorization: Token {ALICE}")),
        ("B033 no scheme", format!("Authorization: {ALICE}")),
        ("B033 nothing", "Authorization:".to_owned()),
        ("B033 nothing in the other header", "X-Api-Key:".to_owned()),
        (
            "B033 a scheme in the other header",
            format!("X-Api-Key: Bearer {ALICE}"),
        ),
        ("B035 another", bearer("somebody")),
        ("B035 the last byte", bearer(&last)),
        ("B035 its beginning", bearer(&ALICE[..6])),
        ("B035 a tab and more", bearer(&format!("{ALICE}\tx"))),
        ("B035 twice", bearer(&twice)),
        ("B035 two in a list", bearer(&format!("{ALICE},{ALICE}"))),
        ("B035 in capitals", bearer(&ALICE.to_uppercase())),
        ("B035 in the other header", format!("X-Api-Key: {last}")),
        ("B036 SQL", bearer("' OR 1=1--")),
        ("B036 %", bearer("%")),
        ("B036 *", bearer("*")),
        ("B036 a template", bearer("{{7*7}}")),
        ("B036 of 8 KiB", bearer(&long)),
        ("B036 of 8 KiB in the other header", format!("X-Api-Key: {long}")),
        ("B040 expired", bearer(GONE)),
        ("B040 switched off", bearer(OFF)),
        ("B040 switched off, in the other header", format!("X-Api-Key: {OFF}")),
    ];
    for (what, header) in spelled {
        rows.push(row(what, send("/chat", &[&header], GOOD), 401, "auth_invalid"));
        let get = ask("GET", "/chat/sse?message=Hi", &[&header]);
        rows.push(row(format!("{what}, in GET"), get, 401, "auth_invalid"));
    }
    for header in ["Authorization: Bearer ", "X-Api-Key: "] {
        let with = |value: &[u8]| {
            let head = format!("GET /agents HTTP/1.1\r\nHost: localhost\r\n{header}");
            [head.as_bytes(), value, b"\r\n\r\n"].concat()
        };
        let name = header.trim_end();
        rows.push(bare(format!("B036 NUL in {name}"), with(b"a\0b"), &[400]));
        let high = [&b"\x80\xff\xfe"[..], "schl\u{fc}ssel".as_bytes()];
        for (number, value) in high.into_iter().enumerate() {
            rows.push(row(
                format!("B037 {number} in {name}"),
                with(value),
                401,
                "auth_invalid",
            ));
        }
        let known = format!("{header}{NARROW}");
        // Who names nobody asks the default agent, whatever else the key may.
        let nobody = send("/chat", &[&known], GOOD);
        rows.push(row(format!("B041 the default by {name}"), nobody, 403, "forbidden"));
        let foreign = r#"{"message":"Hi","agent":"assistant"}"#;
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            let bytes = send(path, &[&known], foreign);
            rows.push(row(format!("B041 {path} by {name}"), bytes, 403, "forbidden"));
        }
        let made = send("/sessions", &[&known], r#"{"agent":"assistant"}"#);
        rows.push(row(format!("B041 /sessions by {name}"), made, 403, "forbidden"));
        let get = ask("GET", "/chat/sse?message=Hi&agent=assistant", &[&known]);
        rows.push(row(format!("B041 GET by {name}"), get, 403, "forbidden"));
        // What another agent may ask is not for this one's callers.
        let model = send(
            "/chat",
            &[&known],
            r#"{"message":"Hi","agent":"helper","model":"openai/other"}"#,
        );
        rows.push(row(format!("B074 by {name}"), model, 422, "model_not_allowed"));
    }
    // A key in an address is refused though a good one is in its header; and a page elsewhere may not use what it knows.
    let known = bearer(ALICE);
    for name in ["api_key", "token", "authorization"] {
        let bytes = send(&format!("/chat?{name}={ALICE}"), &[&known], GOOD);
        rows.push(row(
            format!("B039 {name} beside a key"),
            bytes,
            400,
            "credential_in_url",
        ));
        let bytes = send(&format!("/chat?{name}={ALICE}"), &[], GOOD);
        rows.push(row(format!("B039 {name} for a key"), bytes, 400, "credential_in_url"));
    }
    rows.push(row(
        "B045 with a key",
        ask(
            "GET",
            "/chat/sse?message=Hi",
            &[&known, "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"],
        ),
        403,
        "cross_site",
    ));
    for path in ["/chat/sse", &format!("/runs/{id}/events")] {
        let bytes = ask("GET", path, &[&known, &format!("Last-Event-ID: {id}:0")]);
        rows.push(row(format!("B043 {path} with a key"), bytes, 404, "not_found"));
    }
    // Tickets that nobody made.
    let made_up = format!("ticket_{}", "A".repeat(43));
    for (what, ticket) in [
        ("made up", made_up.as_str()),
        ("a key", ALICE),
        ("nothing", ""),
        ("NUL", "%00"),
    ] {
        for path in [
            format!("/chat/sse?message=Hi&ticket={ticket}"),
            format!("/runs/{id}/events?ticket={ticket}"),
        ] {
            let place = path.split('?').next().unwrap_or_default();
            rows.push(row(
                format!("B046 {what} at {place}"),
                ask("GET", &path, &[]),
                401,
                "ticket_invalid",
            ));
            rows.push(row(
                format!("B046 {what} at {place}, beside a key"),
                ask("GET", &path, &[&known]),
                401,
                "ticket_invalid",
            ));
        }
    }
    rows
}

#[tokio::test]
async fn without_a_good_key_or_with_one_that_may_not_nothing_runs() {
    let (upstream, gateway) = keyed_house().await;
    let mut took = every(keyed_rows(), async |row| answered(gateway.addr(), row).await).await;
    took.sort_unstable();
    assert!(took[took.len() / 2] < SOON, "refused late: {took:?}");
    nothing_happened_but(good_by(ALICE), &upstream, &gateway, gateway.folder()).await;
}

#[tokio::test]
async fn what_is_not_there_and_what_cannot_be_look_the_same() {
    let (_upstream, gateway) = house().await;
    let mut bodies = BTreeSet::new();
    for path in [
        "/runs/01920000-0000-7000-8000-000000000001",
        "/runs/x",
        "/sessions/none",
        "/sessions/none/messages",
        "/nowhere",
    ] {
        let mut problem = refused(get(&gateway, path).await).await;
        problem["request_id"].take();
        bodies.insert(problem.to_string());
    }
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
}
