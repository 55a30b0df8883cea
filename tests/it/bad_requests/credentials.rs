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
    for name in ["api_key", "API_KEY", "apikey", "access_token", "token", "authorization"] {
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
